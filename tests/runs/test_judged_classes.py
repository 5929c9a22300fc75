"""What a judge can learn of a split, and evaluations of runs whose data lack some classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_shards import images_by_key
from tars import png, write_tar

from cdt.cli.command import main
from cdt.data.format.index import Index
from cdt.data.inspect.foreign import index_shards
from cdt.evaluate.results import Evaluation
from cdt.runs.evaluation import LEAST, labelled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def split_of(place: Path, labels: list[int], scores: list[int] | None = None) -> Index:
    """Images of these labels, with the attribute ``score``; each shows its number."""
    members = []
    for number, label in enumerate(labels):
        record = f'{{"score": {scores[number] if scores else 0}}}'.encode()
        members += [
            (f"k{number}.cls", str(label).encode()),
            (f"k{number}.png", png(number)),
            (f"k{number}.json", record),
        ]
    index_shards([str(write_tar(place / "a.tar", members))], place / "out")
    return Index.load(place / "out")


def test_labels_that_begin_at_one_with_a_gap_and_a_single_image(tmp_path: Path) -> None:
    index = split_of(tmp_path, [1, 1, 3, 3, 3, 4])
    assert index.class_names == ["0", "1", "2", "3", "4"]
    found = labelled(index)
    assert found.labels == ("1", "3")
    assert found.left_out == ("0", "2", "4")
    keys = [index.keys()[row] for row in found.rows]
    assert dict(zip(keys, found.targets.tolist(), strict=True)) == {"k0": 0, "k1": 0, "k2": 1, "k3": 1, "k4": 1}
    assert images_by_key(index)["k5"] == 5


def test_values_of_an_attribute_with_a_single_image(tmp_path: Path) -> None:
    found = labelled(split_of(tmp_path, [0] * 5, scores=[7, 2, 2, 7, 5]), "score")
    assert found.labels == ("score=2", "score=7")
    assert found.left_out == ("score=5",)
    assert np.bincount(found.targets).tolist() == [2, LEAST]


def test_classes_without_images_are_left_out_of_an_evaluation_and_named(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's data have the digits 2 to 6."""
    assert main(["evaluate", str(whole), "-n", "20"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Left out, as there are fewer than 2 images of each: 0, 1, 7 and 2 more." in printed
    found = Evaluation.from_json((whole / "evaluation.json").read_text())
    assert found.class_names == ("2", "3", "4", "5", "6")
    assert found.class_counts == (177, 183, 18, 182, 181)
    assert found.left_out == ("0", "1", "7", "8", "9")
    assert {state.name: state.classes for state in found.constraints} == {"four": (2,), "five": (3,)}
    assert sum(found.shares) == pytest.approx(1)


def test_classifier_and_evaluate_leave_out_the_same(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classifier", str(home / "data"), str(tmp_path / "c.safetensors"), "--steps", "2"]) == 0
    assert "fewer than 2 images of each: 0, 1, 7 and 2 more." in " ".join(capsys.readouterr().out.split())
