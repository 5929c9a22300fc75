"""A local data set in the hub's format; the package is an extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdt.cli.command import main
from cdt.data.format.index import Index
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.errors import InputError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # of its own dependencies


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )

    def part(first: int, count: int) -> object:
        numbers = range(first, first + count)
        pictures = [Image.fromarray(np.full((6, 5), number, np.uint8)) for number in numbers]
        columns = {"picture": pictures, "kind": [number % 2 for number in numbers], "text": [""] * count}
        return datasets.Dataset.from_dict(columns, features=features)

    path = tmp_path_factory.mktemp("hf") / "saved"
    datasets.DatasetDict({"train": part(0, 20), "test": part(100, 6)}).save_to_disk(path)
    return path


def test_a_data_set_becomes_shards(saved: Path, tmp_path: Path) -> None:
    assert main(["shard", "hf", str(saved), str(tmp_path / "out")]) == 0
    for split, first in (("train", 0), ("test", 100)):
        index = Index.load(tmp_path / "out", split)
        assert (index.class_names, index.shape) == (["cat", "dog"], (1, 6, 5))
        images = ImageReader(index, 0).images(np.arange(index.count))
        for key, image, label in zip(index.keys(), images, index.classes, strict=True):
            number = first + int(key.rpartition("-")[2])
            assert (image == number).all()
            assert label == number % 2


def test_rows_without_image_or_label_are_left_out_as_bad_samples_are_everywhere(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    good = Image.fromarray(np.full((6, 5), 7, np.uint8))
    images = [good, None, good, {"bytes": b"MZ", "path": None}]
    columns = {"image": images, "label": [0, 0, None, 1]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns, features=features)}).save_to_disk(
        tmp_path / "in"
    )
    source = SOURCES["hf"](tmp_path / "in")
    assert source.problems.places == {
        "missing image": ["split train, row 1: it has none"],
        "missing label": ["split train, row 2: its label is None"],
        "damaged image": ["split train, row 3: it is no or a damaged PNG, JPEG, WEBP, BMP or TIFF"],
    }
    with pytest.raises(InputError, match="3 problems beside 1 usable samples are more than --max-bad"):
        shard(source, tmp_path / "out")
    assert main(["shard", "hf", str(tmp_path / "in"), str(tmp_path / "out"), "--max-bad", "0.8"]) == 0
    assert Index.load(tmp_path / "out").count == 1


def test_splits_may_number_their_classes_differently(tmp_path: Path) -> None:
    def part(names: list[str]) -> object:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        pictures = [Image.fromarray(np.full((6, 5), number, np.uint8)) for number in range(len(names))]
        return datasets.Dataset.from_dict({"image": pictures, "label": [*range(len(names))]}, features=features)

    datasets.DatasetDict({"train": part(["a", "b"]), "test": part(["c", "b", "a"])}).save_to_disk(tmp_path / "in")
    shard(SOURCES["hf"](tmp_path / "in"), tmp_path / "out")
    for split, names in (("train", ["a", "b"]), ("test", ["c", "b", "a"])):
        index = Index.load(tmp_path / "out", split)
        shown = ImageReader(index, 0).images(np.arange(index.count))[:, 0, 0, 0]
        assert {index.class_names[c]: int(x) for c, x in zip(index.classes, shown, strict=True)} == {
            name: number for number, name in enumerate(names)
        }


def test_a_split_whose_name_has_dots(saved: Path, tmp_path: Path) -> None:
    parts = datasets.load_from_disk(str(saved))
    datasets.DatasetDict({"train": parts["train"], "test.hard.v2": parts["test"]}).save_to_disk(tmp_path / "in")
    summary = shard(SOURCES["hf"](tmp_path / "in"), tmp_path / "out")
    assert summary.notes == ["split test.hard.v2 is written as test-hard-v2"]
    index = Index.load(tmp_path / "out", "test-hard-v2")
    assert sorted(index.keys())[0] == "hf-test-hard-v2-00000000"
    assert (index.count, verify(tmp_path / "out").problems) == (6, [])


def test_without_rows_it_is_one_line(tmp_path: Path) -> None:
    datasets.DatasetDict({}).save_to_disk(tmp_path / "in")
    with pytest.raises(InputError, match="it has no rows"):
        SOURCES["hf"](tmp_path / "in")


def test_wrong_names_are_one_line(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"^hf .*: split train: --label: name one column of type ClassLabel; .*picture \(Image"
    ):
        SOURCES["hf"](saved, None, "text")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^hf [^\n]*$"):
        SOURCES["hf"](tmp_path / "nothing")
