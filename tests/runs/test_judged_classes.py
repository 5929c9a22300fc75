"""What a judge can learn of a split, and evaluations of runs whose data lack some classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
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


@pytest.fixture
def one_damaged(tmp_path: Path) -> Path:
    """All digits, as 1,797 pictures; one shows a flipped bit since they were written."""
    root = tiny.write_shards(tmp_path / "full", keep={}, only=[], pack=False, shard_mb=64)
    index = Index.load(root)
    tar = root / index.shards[0].name
    content = bytearray(tar.read_bytes())
    content[int(index.offset[5]) + 45] ^= 1
    tar.write_bytes(content)
    return root


def test_one_damaged_image_stops_no_classifier(
    one_damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["classifier", str(one_damaged), str(tmp_path / "c.safetensors"), "--steps", "2"]
    assert main([*arguments, "--max-bad", "0.0005"]) == 1
    refused = capsys.readouterr().err
    assert refused.startswith(
        "cdt classifier: 1 samples are unusable (wrong checksum 1); most of them in train/000000.tar"
    )
    assert f"Allowed are 0 of 1,797 (--max-bad 0.0005); `cdt verify {one_damaged}` checks" in refused
    assert refused.count("\n") == 1
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert told.startswith(
        "cdt classifier: 1 samples are unusable (wrong checksum 1); most of them in train/000000.tar"
    )
    assert told.endswith("They are left out\n")
    assert main([*arguments, "--max-bad", "2"]) == 2


def test_one_damaged_image_of_the_reference_stops_no_evaluation(
    whole: Path, one_damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(whole), "-n", "20", "--reference", str(one_damaged)]) == 0
    told = capsys.readouterr().err
    assert told.startswith("cdt evaluate: 1 samples are unusable (wrong checksum 1); most of them in train/000000.tar")
    assert Evaluation.from_json((whole / "evaluation.json").read_text()).judge_held_out > 200


def test_an_unusable_image_leaves_its_label_with_fewer(tmp_path: Path) -> None:
    """One of two images of a label is damaged: the other cannot train and test a judge."""
    index = split_of(tmp_path, [0, 0, 0, 1, 1, 2, 2])
    found = labelled(index, None, np.array([0, 1, 2, 3, 5, 6]))
    assert (found.labels, found.left_out) == (("0", "2"), ("1",))
    assert found.rows.tolist() == [0, 1, 2, 5, 6]
    assert found.targets.tolist() == [0, 0, 0, 1, 1]
