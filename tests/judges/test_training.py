from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdt.errors import InputError
from cdt.judges import Classifier, train_classifier
from cdt.judges.training import random_shift, stratified_held_out

DIGITS = tuple("0123456789")


def test_learns_digits(judge: Classifier, digits: tuple[Tensor, Tensor]) -> None:
    assert judge.labels == DIGITS
    assert sum(judge.held_out_count) == 219
    assert judge.accuracy > 0.95
    probabilities = judge.probabilities(digits[0])
    assert probabilities.shape == (1797, 10)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(1797))
    assert (probabilities.argmax(dim=1) == digits[1]).float().mean() > 0.95


def test_is_a_function_of_its_arguments(digits: tuple[Tensor, Tensor]) -> None:
    images, targets = digits
    before = torch.random.get_rng_state()
    first, again, other, plain = (
        train_classifier(images, targets, DIGITS, architecture=architecture, seed=seed, steps=3)
        for architecture, seed in (("residual", 1), ("residual", 1), ("residual", 2), ("plain", 1))
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.probabilities(images), again.probabilities(images))
    assert not torch.equal(first.probabilities(images), other.probabilities(images))
    assert not torch.equal(first.probabilities(images), plain.probabilities(images))


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_rare_classes_are_learnt(architecture: str, digits: tuple[Tensor, Tensor]) -> None:
    images, targets = digits
    rare = (targets == 1).nonzero().flatten()
    kept = torch.cat([(targets == 0).nonzero().flatten(), rare[:12]])
    judge = train_classifier(
        images[kept], targets[kept], DIGITS[:2], architecture=architecture, seed=0, steps=60, batch_size=32
    )
    assert judge.held_out_count == (22, 1)
    assert (judge.probabilities(images[rare[12:]]).argmax(dim=1) == 1).float().mean() > 0.9


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_number_of_steps(steps: int, digits: tuple[Tensor, Tensor]) -> None:
    judge = train_classifier(*digits, DIGITS, architecture="plain", seed=0, steps=steps)
    assert all(weight.isfinite().all() for weight in judge.network.state_dict().values())


def test_held_out_images_are_stratified() -> None:
    targets = torch.tensor([0] * 80 + [1] * 17 + [2] * 2)
    held_out = stratified_held_out(targets, 3, torch.Generator().manual_seed(0))
    assert targets[held_out].bincount().tolist() == [10, 2, 1]


def test_shifts_move_each_image_and_repeat_its_edges() -> None:
    ramp = torch.arange(36.0).view(1, 1, 6, 6).expand(200, 2, 6, 6)
    moved = random_shift(ramp, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(ramp[:1], (1, 1, 1, 1), mode="replicate")
    windows = [padded[0, :, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
    seen = {next(i for i, window in enumerate(windows) if torch.equal(image, window)) for image in moved}
    assert seen == set(range(9))


@pytest.mark.parametrize(
    ("targets", "labels", "message"),
    [
        ([0, 0, 1, 1], "a", "at least 2, the data has 1"),
        ([0, 0, 1, 2], "ab", "targets run from 0 to 2, expected 0 to 1"),
        ([0, 0, 0, 1], "abc", "too few of b, c$"),
        ([0, 0, 0, 1], "abcdefgh", "too few of b, c, d, e, f and 2 more"),
        ([0, 0, 1], "ab", "one target each"),
    ],
)
def test_bad_input(targets: list[int], labels: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_classifier(torch.zeros(4, 1, 8, 8), torch.tensor(targets), tuple(labels), architecture="plain", seed=0)
