"""A local data set in the hub's format; the package is an extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdt.cli.command import main
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader
from cdt.data.sources import SOURCES
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


def test_wrong_names_are_one_line(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^--label: name one column of type ClassLabel; .*picture \(Image"):
        SOURCES["hf"](saved, None, "text")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^hf [^\n]*$"):
        SOURCES["hf"](tmp_path / "nothing")
