from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from cdt.errors import InputError, RunError
from cdt.evaluate.classifier import Classifier, FeatureNetwork, random_shift, stratified_held_out, train_classifier


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    grey, labels = map(torch.tensor, load_digits(return_X_y=True))
    return grey.float().view(-1, 1, 8, 8) / 8 - 1, labels


@pytest.fixture(scope="module")
def judge(digits: tuple[Tensor, Tensor]) -> Classifier:
    return train_classifier(*digits, 10, seed=0, steps=100)


def test_learns_digits(judge: Classifier, digits: tuple[Tensor, Tensor]) -> None:
    assert sum(judge.held_out_count) == 219
    assert judge.accuracy > 0.95
    probabilities = judge.probabilities(digits[0])
    assert probabilities.shape == (1797, 10)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(1797))
    assert (probabilities.argmax(dim=1) == digits[1]).float().mean() > 0.95


def test_is_a_function_of_its_arguments(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    before = torch.random.get_rng_state()
    first, again, other = (train_classifier(images, labels, 10, seed=s, steps=3) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.probabilities(images), again.probabilities(images))
    assert not torch.equal(first.probabilities(images), other.probabilities(images))


def test_batches_do_not_matter(judge: Classifier, digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:50]
    assert torch.allclose(judge.probabilities(images), judge.probabilities(images, batch_size=7), atol=1e-6)
    assert torch.allclose(judge.features(images), judge.features(images, batch_size=7), atol=1e-5)
    assert judge.features(images).shape == (50, judge.network.features.num_features)


def test_save_and_load(judge: Classifier, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["judge.safetensors"]
    loaded = Classifier.load(tmp_path / "judge.safetensors")
    assert (loaded.accuracy, loaded.held_out_count) == (judge.accuracy, judge.held_out_count)
    assert torch.equal(loaded.probabilities(digits[0]), judge.probabilities(digits[0]))


def test_what_is_not_a_judge(judge: Classifier, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="no such file"):
        Classifier.load(tmp_path / "missing")
    with pytest.raises(InputError, match="not a judge"):
        Classifier.load(tmp_path / "other")
    with pytest.raises(RunError, match="could not be written"):
        judge.save(tmp_path / "no" / "such" / "directory")
    with pytest.raises(InputError, match=r"reads images of shape \(1, 8, 8\), not \(3, 8, 8\)"):
        judge.probabilities(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 7, 9), (1, 28, 28), (3, 64, 48), (3, 100, 100), (3, 256, 256)])
def test_features_at_any_size(shape: tuple[int, int, int]) -> None:
    network = FeatureNetwork(shape).eval()
    assert network(torch.zeros(2, *shape)).shape == (2, network.num_features)
    assert 4 <= min(network.map(torch.zeros(1, *shape)).shape[2:]) <= 8


def test_rare_classes_are_learnt(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    rare = (labels == 1).nonzero().flatten()
    kept = torch.cat([(labels == 0).nonzero().flatten(), rare[:12]])
    judge = train_classifier(images[kept], labels[kept], 2, seed=0, steps=60, batch_size=32)
    assert judge.held_out_count == (22, 1)
    assert (judge.probabilities(images[rare[12:]]).argmax(dim=1) == 1).float().mean() > 0.9


def test_held_out_images_are_stratified() -> None:
    labels = torch.tensor([0] * 80 + [1] * 17 + [2] * 2)
    held_out = stratified_held_out(labels, 3, torch.Generator().manual_seed(0))
    assert labels[held_out].bincount().tolist() == [10, 2, 1]


def test_shifts_move_each_image_and_repeat_its_edges() -> None:
    ramp = torch.arange(36.0).view(1, 1, 6, 6).expand(200, 2, 6, 6)
    moved = random_shift(ramp, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(ramp[:1], (1, 1, 1, 1), mode="replicate")
    windows = [padded[0, :, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
    seen = {next(i for i, window in enumerate(windows) if torch.equal(image, window)) for image in moved}
    assert seen == set(range(9))


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 0, 1, 1], 1, "at least 2, the data has 1"),
        ([0, 0, 1, 2], 2, "labels run from 0 to 2, expected 0 to 1"),
        ([0, 0, 0, 1], 3, r"too few of class \[1, 2\]"),
        ([0, 0, 1], 2, "one label each"),
    ],
)
def test_bad_input(labels: list[int], num_classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_classifier(torch.zeros(4, 1, 8, 8), torch.tensor(labels), num_classes, seed=0)
