from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdt.errors import InputError, RunError
from cdt.judges import Classifier


def test_batches_do_not_matter(judge: Classifier, digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:50]
    assert torch.allclose(judge.probabilities(images), judge.probabilities(images, batch_size=7), atol=1e-6)
    assert torch.allclose(judge.features(images), judge.features(images, batch_size=7), atol=1e-5)
    assert judge.features(images).shape == (50, judge.network.features.num_features)
    with pytest.raises(InputError, match=r"reads images of shape \(1, 8, 8\), not \(3, 8, 8\)"):
        judge.probabilities(torch.zeros(2, 3, 8, 8))


def test_accuracy_is_the_mean_over_labels(judge: Classifier) -> None:
    lopsided = Classifier(judge.network, ("a", "b"), (90, 1), (100, 2))
    assert lopsided.recalls == (0.9, 0.5)
    assert lopsided.accuracy == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["judge.safetensors", "judge"])
def test_save_and_load(name: str, judge: Classifier, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    judge.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    loaded = Classifier.load(tmp_path / name)
    assert loaded.labels == judge.labels
    assert loaded.network.architecture == judge.network.architecture
    assert (loaded.held_out_correct, loaded.held_out_count) == (judge.held_out_correct, judge.held_out_count)
    assert torch.equal(loaded.probabilities(digits[0]), judge.probabilities(digits[0]))


def test_a_file_is_replaced_and_a_directory_is_not(judge: Classifier, tmp_path: Path) -> None:
    for path in (tmp_path / "judge.safetensors", tmp_path / "judge"):
        judge.save(path)
    judge.save(tmp_path / "judge.safetensors")
    with pytest.raises(RunError, match="could not be written"):
        judge.save(tmp_path / "judge")
    with pytest.raises(RunError, match="could not be written"):
        judge.save(tmp_path / "no" / "such" / "directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge", "judge.safetensors"]


def test_what_is_no_classifier(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"not safetensors at all")
    save_file({"weight": torch.zeros(1)}, tmp_path / "headless.safetensors")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("missing.safetensors", "missing.safetensors: no such file; expected a classifier of cdt"),
        ("other.safetensors", r"other.safetensors: not a classifier of cdt \("),
        ("headless.safetensors", "headless.safetensors: not a classifier of cdt: its header holds no description"),
        ("empty", "config.json: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            Classifier.load(tmp_path / name)


def labels_changed(facts: dict[str, Any], labels: list[str]) -> None:
    facts["labels"] = labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("labels"), "labels: Field required"),
        (lambda facts: labels_changed(facts, ["a"]), "labels: Tuple should have at least 2"),
        (lambda facts: labels_changed(facts, ["a"] * 10), "labels: Value error, a label appears twice"),
        (lambda facts: labels_changed(facts, ["a", "b"]), "labels and held-out counts differ in number"),
        (lambda facts: facts.update(architecture="vgg"), "no architecture 'vgg'"),
        (lambda facts: facts.update(shape=[1, 2, 8]), "shape.1: Input should be greater than or equal to 4"),
        (lambda facts: facts.update(shape=[3, 8, 8]), r"not a classifier of cdt \(Error\(s\) in loading state_dict"),
    ],
)
def test_a_description_that_does_not_fit(
    change: Callable[[dict[str, Any]], None], message: str, judge: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "judge.safetensors"
    judge.save(path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["classifier"])
    change(facts)
    save_file(load_file(path), path, metadata={"classifier": json.dumps(facts)})
    with pytest.raises(InputError, match=message) as told:
        Classifier.load(path)
    assert str(told.value).startswith(f"{path}: ")
    assert len(str(told.value).splitlines()) == 1


def made_of(value: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.clone().fill_(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (made_of(math.nan), "the classifier cannot be used: head.weight has values that are not finite"),
        (made_of(-math.inf), "the classifier cannot be used: head.weight has values that are not finite"),
        (Tensor.half, r"not a classifier of cdt: head.weight is torch.float16, not torch.float32"),
        (Tensor.double, r"not a classifier of cdt: head.weight is torch.float64, not torch.float32"),
    ],
)
@pytest.mark.parametrize("name", ["judge.safetensors", "judge"])
def test_weights_that_are_taken_as_they_are(
    change: Callable[[Tensor], Tensor], message: str, name: str, judge: Classifier, tmp_path: Path
) -> None:
    judge.save(tmp_path / name)
    file = tmp_path / name if name.endswith("s") else tmp_path / name / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        facts = opened.metadata()
    weights = load_file(file)
    save_file(weights | {"head.weight": change(weights["head.weight"])}, file, metadata=facts)
    with pytest.raises(InputError) as told:
        Classifier.load(tmp_path / name)
    assert str(told.value) == f"{tmp_path / name}: {message}"
