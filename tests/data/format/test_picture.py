"""One rule for pictures, whatever way they come in."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_pictures import PICTURES, Odd, chunk
from tars import write_tar

from cdt.data.format.index import Index
from cdt.data.format.picture import FILE_FORMATS, PNG_SIGNATURE, ShapeError, checked_facts, picture_facts, read_picture
from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.errors import InputError


def by_folder(place: Path, payload: bytes) -> Path:
    """Its name says PNG, whatever it is."""
    (place / "in" / "class").mkdir(parents=True)
    (place / "in" / "class" / "x.png").write_bytes(payload)
    shard(SOURCES["folder"](place / "in"), place / "out")
    return place / "out"


def by_hf(place: Path, payload: bytes) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["class"])})
    columns = {"image": [{"bytes": payload, "path": None}], "label": [0]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(place / "in")
    shard(SOURCES["hf"](place / "in"), place / "out")
    return place / "out"


def by_tar(place: Path, payload: bytes) -> Path:
    write_tar(place / "a.tar", [("x.jpg", payload), ("x.cls", b"class")])
    index_shards([str(place / "a.tar")], place / "out")
    return place / "out"


WAYS = {"folder": by_folder, "hf": by_hf, "tar": by_tar}


@pytest.mark.filterwarnings("ignore")  # of the package datasets
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PICTURES)
def test_every_way_shows_the_same(tmp_path: Path, name: str, way: str) -> None:
    odd = PICTURES[name]
    refused = odd.refused
    if way == "tar" and not odd.in_shards:
        refused = "it is no or a damaged PNG, JPEG or WEBP"
    if refused is not None:
        with pytest.raises(InputError, match=rf"(damaged image|too large): 1, as .*({refused})"):
            WAYS[way](tmp_path, odd.payload)
        assert not (tmp_path / "out" / "index.json").exists()
        return
    assert odd.shows is not None
    index = Index.load(WAYS[way](tmp_path, odd.payload))
    (image,) = ImageReader(index, 0).images(np.arange(1))
    shows = odd.shows[None] if odd.shows.ndim == 2 else odd.shows.transpose(2, 0, 1)
    assert image.shape == shows.shape == index.shape
    assert abs(image.astype(int) - shows).max() <= odd.tolerance
    assert verify(index.root).problems == []


@pytest.mark.parametrize("name", PICTURES)
def test_the_header_promises_what_the_pixels_are(name: str) -> None:
    odd = PICTURES[name]
    if odd.shows is not None:
        facts = picture_facts(io.BytesIO(odd.payload))
        assert facts.shape == read_picture(odd.payload).shape
        assert checked_facts(odd.payload) == facts
        assert facts.transparent == any(word in name for word in ("alpha", "transparent"))


def test_another_size_is_noticed_before_the_pixels_are_decoded() -> None:
    turned = PICTURES["PNG of colour, orientation 6"].payload
    assert read_picture(turned, size=(4, 6)).shape == (3, 4, 6)
    with pytest.raises(ShapeError, match="4 x 6 pixels, expected 6 x 4"):
        read_picture(turned, size=(6, 4))


def test_indexes_of_earlier_versions_leave_photographs_as_they_lie(tmp_path: Path) -> None:
    """A run that was begun on them sees what it saw."""
    odd = PICTURES["JPEG, orientation 3"]
    out = by_tar(tmp_path, odd.payload)
    header = json.loads((out / "index.json").read_text())
    assert header.pop("upright") is True
    (out / "index.json").write_text(json.dumps(header))
    (image,) = ImageReader(Index.load(out), 0).images(np.arange(1))
    assert odd.shows is not None
    assert abs(image[:, ::-1, ::-1].astype(int) - odd.shows.transpose(2, 0, 1)).max() <= odd.tolerance


NOTES: dict[str, Callable[[Path], list[str]]] = {
    "folder": lambda place: shard(SOURCES["folder"](place / "in"), place / "out").notes,
    "tar": lambda place: index_shards([str(place / "a.tar")], place / "out")[1],
}


@pytest.mark.parametrize("way", NOTES)
def test_that_transparency_becomes_white_is_said(tmp_path: Path, way: str) -> None:
    payload = PICTURES["colour and alpha"].payload
    (tmp_path / "in" / "class").mkdir(parents=True)
    (tmp_path / "in" / "class" / "x.png").write_bytes(payload)
    write_tar(tmp_path / "a.tar", [("x.png", payload), ("x.cls", b"class")])
    assert "images with transparency, which becomes white: 1" in NOTES[way](tmp_path)


@given(st.sampled_from([odd for odd in PICTURES.values() if odd.payload]), st.data())
def test_damaged_bytes_are_a_picture_or_a_value_error(odd: Odd, data: st.DataObject) -> None:
    payload = bytearray(odd.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut])):
        for read in (lambda: read_picture(damaged), lambda: picture_facts(io.BytesIO(damaged))):  # noqa: B023
            with contextlib.suppress(ValueError):
                read()


def test_a_small_file_that_promises_many_pixels_costs_nothing() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    bomb = PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="exceeds limit of"):
        read_picture(bomb, FILE_FORMATS)
