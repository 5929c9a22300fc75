"""Shards of others: indexed where they are, side by side, again after an interruption; what is wrong has a name."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_shards import images_by_key, pure_shards
from PIL import Image
from server import Server, serve
from tars import npy, png, sample, write_tar

from cdt.cli.command import main
from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.inspect import foreign
from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.data.stream import MixtureStream
from cdt.dual import Draws
from cdt.errors import InputError


def test_shards_elsewhere_are_read_where_they_are(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    header, notes = index_shards(
        pure_shards(tmp_path / "theirs"), tmp_path / "out", progress=lambda *step: told.append(step)
    )
    assert notes == ["fields of json that are left out, as they are no numbers: caption, name"]
    assert told == [(done, 6) for done in range(1, 7)]
    index = Index.load(tmp_path / "out")
    index.check_sizes()
    assert (index.shape, index.dtype, index.class_names) == ((1, 6, 5), "uint8", [str(c) for c in range(6)])
    assert header.order == index.order == "stratified"
    assert index.class_counts.tolist() == [20] * 6
    assert sorted(index.attributes) == ["age", "male"]
    assert images_by_key(index) == {f"some/folder/{value:04d}": value for value in range(120)}
    assert index.attributes["age"].tolist() == pytest.approx([value / 7 for value in range(120)], rel=1e-6)
    assert verify(tmp_path / "out").problems == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.arrow", "index.json", "train"]


def test_an_index_beside_its_shards_names_them_as_they_are(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    index = Index.load(tmp_path)
    assert [info.name for info in index.shards] == [f"x-{label:03d}.tar" for label in range(6)]
    assert not list(tmp_path.glob("*/*"))
    assert len(images_by_key(index)) == 120


def test_training_asks_for_the_index_in_one_line(tmp_path: Path) -> None:
    pure_shards(tmp_path)
    with pytest.raises(InputError, match=rf"^{tmp_path} has shards but no index.json: `cdt index '{tmp_path}'/\*"):
        Index.load(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path) as server:
        yield server


def test_shards_at_urls(tmp_path: Path, server: Server) -> None:
    pure_shards(tmp_path / "theirs")
    index_shards([f"{server.url}/theirs/x-{{000..005}}.tar"], tmp_path / "out")
    index = Index.load(tmp_path / "out")
    assert (index.base, index.shards[2].name) == (f"{server.url}/theirs", "x-002.tar")
    assert len(set(images_by_key(index).values())) == 120


def test_class_pure_shards_give_mixed_batches(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    index = Index.load(tmp_path)
    stream = MixtureStream(
        DataConfig(shards=str(tmp_path)),
        index,
        {},
        index.classes.astype(np.int64),
        lambda lambdas: Draws(np.ones(1), np.ones(1), np.ones(6)),
        lambdas=np.zeros(0),
        batch_size=24,
        seed=0,
    )
    counts = torch.stack([torch.bincount(next(stream).cells, minlength=6) for _ in range(20)])
    assert (counts - 4).abs().max() <= 1


def test_labels_from_json_become_class_names(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path, class_field="name")
    assert Index.load(tmp_path).class_names == [f"n{label}" for label in range(6)]


def test_images_of_many_sizes_need_a_size(tmp_path: Path) -> None:
    members = [
        entry
        for number, (height, width, channels) in enumerate([(9, 20, 1), (30, 8, 3), (8, 8, 3)])
        for entry in ((f"k{number}.cls", b"0"), (f"k{number}.png", png(200, height, width, channels)))
    ]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"images of 3 shapes .* as 1 x 9 x 20 and 3 x .*; --resize N"):
        index_shards([str(tmp_path / "a.tar")], tmp_path)
    index_shards([str(tmp_path / "a.tar")], tmp_path, resize=4)
    images = ImageReader(Index.load(tmp_path), 0).images(np.arange(3))
    assert images.shape == (3, 3, 4, 4)
    assert (images == 200).all()


def test_an_interruption_does_not_cost_what_was_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = pure_shards(tmp_path / "theirs")
    scan_tar, scanned = foreign.scan_tar, []

    def counting(path: Path, name: str, class_field: str | None) -> foreign.Scan:
        if len(scanned) == 4:
            raise KeyboardInterrupt
        scanned.append(name)
        return scan_tar(path, name, class_field)

    monkeypatch.setattr(foreign, "scan_tar", counting)
    with pytest.raises(KeyboardInterrupt):
        index_shards(places, tmp_path / "out")
    monkeypatch.setattr(foreign, "scan_tar", lambda *arguments: scanned.append(arguments[1]) or scan_tar(*arguments))
    index_shards(places, tmp_path / "out")
    assert len(scanned) == 6
    assert len(images_by_key(Index.load(tmp_path / "out"))) == 120


def test_a_damaged_note_of_a_scan_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    places = pure_shards(tmp_path / "theirs")
    monkeypatch.setattr(foreign, "write_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index_shards(places, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    notes = sorted((tmp_path / "cache" / "scans").iterdir())
    assert len(notes) == 6
    for note, content in zip(notes, ["", "null", '{"bytes": 1', "[]", "{}", '{"bytes": "x"}'], strict=True):
        note.write_text(content)
    index_shards(places, tmp_path / "out")
    assert len(images_by_key(Index.load(tmp_path / "out"))) == 120
    assert list((tmp_path / "cache" / "scans").iterdir()) == []


def test_links_of_an_index_that_was_removed_go(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / f"{name}.tar", sample(name)) for name in "abc"]
    index_shards(list(map(str, tars)), tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    index_shards(list(map(str, tars[:2])), tmp_path / "out")
    assert verify(tmp_path / "out").problems == []
    Index.load(tmp_path / "out").check_sizes()


@pytest.mark.parametrize("resize", [None, 4])
def test_grey_images_among_coloured_ones_get_three_channels(tmp_path: Path, resize: int | None) -> None:
    members = [*sample("grey", value=7), ("colour.cls", b"0"), ("colour.png", png(9, channels=3))]
    _, notes = index_shards([str(write_tar(tmp_path / "a.tar", members))], tmp_path / "out", resize=resize)
    assert "grey images that get three equal channels, as others are coloured: 1" in notes
    index = Index.load(tmp_path / "out")
    images = dict(zip(index.keys(), ImageReader(index, 0).images(np.arange(2)), strict=True))
    assert images["grey"].shape == images["colour"].shape == index.shape
    assert (images["grey"] == 7).all()
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((4, 6, 6), np.float32), "only uint8 images are resized"),
        (np.zeros((2, 6, 6), np.uint8), "images of 2 shapes"),
    ],
)
def test_what_cannot_be_resized_is_refused(tmp_path: Path, array: np.ndarray, told: str) -> None:
    members = [("a.cls", b"0"), ("a.npy", npy(array)), ("b.cls", b"0"), ("b.npy", npy(array.repeat(2, axis=0)))]
    with pytest.raises(InputError, match=told):
        index_shards([str(write_tar(tmp_path / "a.tar", members))], tmp_path / "out", resize=4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", *pure_shards(tmp_path / "theirs"), str(tmp_path / "out")]) == 0
    assert "out: 120 samples in 6 shards" in capsys.readouterr().out
    assert main(["index", str(tmp_path / "no.tar"), str(tmp_path / "other")]) == 2


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.5])
def test_a_share_of_bad_samples_is_a_share(tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match=r"--max-bad: .* is no share; expected 0 to 1"):
        index_shards(pure_shards(tmp_path), tmp_path, max_bad=share)


def test_shards_of_others_are_verified_as_they_were_indexed(tmp_path: Path) -> None:
    """Labels by name from json, jpeg, and images that are resized as they are read; a damage is still found."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 8), 7, np.uint8)).save(buffer, "JPEG")
    entries = [
        entry
        for number in range(4)
        for entry in (
            (f"k{number}.jpeg", buffer.getvalue()),
            (f"k{number}.json", json.dumps({"name": "cat" if number % 2 else "dog", "age": number / 2}).encode()),
        )
    ]
    tar = write_tar(tmp_path / "a.tar", entries)
    index_shards([str(tar)], tmp_path / "out", class_field="name", resize=4)
    assert verify(tmp_path / "out").problems == []
    tar.write_bytes(tar.read_bytes().replace(b'"dog"', b'"cow"', 1))
    problems = verify(tmp_path / "out").problems
    assert "wrong label: train/000000.tar: k0: 'cow' instead of 'dog'" in problems


def test_shards_in_out_are_never_replaced_by_links(tmp_path: Path) -> None:
    inside = write_tar(tmp_path / "out" / "train" / "000000.tar", sample("a"))
    before = inside.read_bytes()
    elsewhere = write_tar(tmp_path / "more.tar", sample("b"))
    for urls in ([str(inside), str(elsewhere)], [str(elsewhere)]):
        with pytest.raises(InputError, match=r"000000\.tar is where a link would be; choose another OUT"):
            index_shards(urls, tmp_path / "out")
        assert inside.read_bytes() == before
        assert not inside.is_symlink()


def test_no_index_of_images_that_are_too_large(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("a"))
    with pytest.raises(InputError, match="more than 67,108,864 values"):
        index_shards([str(tar)], tmp_path / "out", resize=10_000)


@pytest.mark.parametrize("path", ["//a.tar", "d//e/a.tar", "d/../a.tar"])
def test_urls_that_no_index_could_name(tmp_path: Path, server: Server, path: str) -> None:
    other = f"{server.url}/theirs/x-000.tar"
    target = (tmp_path / path.lstrip("/")).resolve()
    (tmp_path / "d").mkdir()
    write_tar(target, sample("a"))
    write_tar(tmp_path / "theirs" / "x-000.tar", sample("b"))
    with pytest.raises(InputError, match=r"a folder of its path is empty or \.\.; name it without"):
        index_shards([f"{server.url}/{path}", other], tmp_path / "out")


def test_a_shard_that_changed_at_its_url_is_scanned_anew(tmp_path: Path, server: Server) -> None:
    url = f"{server.url}/theirs/x-000.tar"
    pure_shards(tmp_path / "theirs")
    index_shards([url], tmp_path / "one")
    write_tar(tmp_path / "theirs" / "x-000.tar", [entry for n in range(20) for entry in sample(f"k{n}", value=n)])
    size = (tmp_path / "theirs" / "x-000.tar").stat().st_size
    assert Index.load(tmp_path / "one").shards[0].bytes >= size
    with (tmp_path / "theirs" / "x-000.tar").open("ab") as file:
        file.truncate(Index.load(tmp_path / "one").shards[0].bytes)
    index_shards([url], tmp_path / "two", max_bad=1)
    assert Index.load(tmp_path / "two").keys()[0] == "k0"


def test_a_resumed_scan_fetches_nothing_again(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.url}/theirs/x-000.tar"
    pure_shards(tmp_path / "theirs")
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(foreign, "write_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index_shards([url], tmp_path / "out")
    monkeypatch.undo()
    sent = server.sent
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache" / "shards")
    index_shards([url], tmp_path / "out")
    assert server.sent - sent == 1
