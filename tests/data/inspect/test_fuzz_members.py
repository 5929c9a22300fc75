"""Tars of strangers, made at random from odd names, odd images, odd labels and odd json: each is used, or named."""

from __future__ import annotations

import io
import json
import math
import random
import tarfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bounded import bounded_memory
from odd_pictures import PICTURES
from tars import member, npy, png

from cdt.data.format.index import Index
from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.errors import InputError

TARS, EACH = 800, 3
LIMIT_BYTES = 2**31
LIMIT_S = 20
"""Seconds for one tar of a few kilobytes; the machine may be busy."""
STEMS = [
    *("a", "b.c", "d/e", "x/y.z", "./f", "._g", ".h", "__MACOSX/i", "j k", "ü", "u\u0308", "猫", "A" * 90, "l" * 300),
    *("/m", "../n", "o/../../p", "q\x1b[2J", "r\ns", "t\x00u", "", " ", ".", "..", "con", "%s", "{v}", "-w", "\udcff"),
]
EXTENSIONS = [
    *("png", "jpg", "JPEG", "webp", "npy", "raw", "gif", "tiff", "pkl", "pyd", "cls", "json", "txt"),
    "",
    "png.gz",
]
LABELS = [
    *(b"0", b"1", b"7", b"07", b"-1", b"1.0", b"1e3", b"cat", b"", b" ", b"\n", b"\xff", b"\xef\xbb\xbf3", b"9" * 400),
    *(
        b"\x1b[2J",
        "\uff13".encode(),
        "café".encode(),
        b"nan",
        b"true",
        b"a\x00b",
        b"0" * 199,
        b"x" * 201,
        b"{}",
        b"999",
    ),
]
VALUES = [
    0,
    1,
    -1,
    0.5,
    2**31,
    2**53 + 1,
    10**400,
    math.nan,
    math.inf,
    True,
    None,
    "",
    "x",
    "\ud800",
    [],
    [1],
    {},
    {"a": 1},
]
SHAPES = [
    "(1, 6, 5)",
    "(True, 6, 5)",
    "(1, -6, 5)",
    "(1, 6)",
    "()",
    "(1, 6, 5, 1)",
    "(1,99999,99999)",
    "(1.0, 6, 5)",
    "[1]",
]
DTYPES = ["|u1", "<f4", ">f4", "<f8", "|O", "|S3", "|b1", "<c8", "[('a', '<f4')]", "<U1", "<M8[s]", "|V0"]


def crafted_npy(rng: random.Random) -> bytes:
    """An npy of any header; numpy's own writer refuses most of these."""
    order = rng.choice(["False", "True", "0", "None"])
    dtype = rng.choice(DTYPES)
    quoted = dtype if dtype.startswith("[") else repr(dtype)
    header = f"{{'descr': {quoted}, 'fortran_order': {order}, 'shape': {rng.choice(SHAPES)}, }}".encode()
    length = rng.choice([len(header), len(header), len(header), 0, 65535])
    version = rng.choice([b"\x01\x00", b"\x02\x00", b"\x09\x09"])
    return b"\x93NUMPY" + version + length.to_bytes(2, "little") + header + bytes(rng.choice([30, 120, 0, 31]))


def damaged(payload: bytes, rng: random.Random) -> bytes:
    content = bytearray(payload)
    for _ in range(rng.randint(1, 6)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content) + 1)]) if rng.random() < 0.3 else bytes(content)


def bomb() -> bytes:
    """A PNG of few bytes that promises 8,000 x 8,000 pixels and has them."""
    rows = zlib.compress(bytes(8001) * 8000, 9)
    body = [(b"IHDR", (8000).to_bytes(4) * 2 + b"\x08\x00\x00\x00\x00"), (b"IDAT", rows), (b"IEND", b"")]
    chunks = [len(c).to_bytes(4) + n + c + zlib.crc32(n + c).to_bytes(4) for n, c in body]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BOMB = bomb()


def payload_of(ext: str, rng: random.Random) -> bytes:
    if ext == "cls":
        return rng.choice(LABELS)
    if ext == "json":
        if rng.random() < 0.2:
            return rng.choice([b"", b"[", b"[" * 5000, b"{" * 5000, b"null", b"\xff", b'{"a": 1, "a": 2}', b" " * 1000])
        record = {rng.choice(["y", "age", "", "a\x1bb", "k" * 300, "\ud800"]): rng.choice(VALUES) for _ in range(3)}
        return json.dumps(record).encode()
    picture = rng.choice([*(odd.payload for odd in PICTURES.values()), png(), npy(np.zeros((1, 6, 5), np.uint8)), BOMB])
    return rng.choice([picture, picture, damaged(picture, rng), crafted_npy(rng), crafted_npy(rng), b""])


def hostile_tar(path: Path, rng: random.Random) -> None:
    """Some samples that may be used, among them some that may not; now and then a link, a device or a wrong size."""
    with tarfile.open(
        path, "w", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), errors="surrogateescape"
    ) as tar:
        good = [("good.cls", b"0"), ("good.png", png())] if rng.random() < 0.7 else []
        for name, content in good:
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
        for _ in range(rng.randint(1, 6)):
            stem = rng.choice(STEMS)
            for ext in rng.sample(EXTENSIONS, rng.randint(1, 4)) + rng.choice([[], ["cls"], ["cls", "png"]]):
                name = f"{stem}.{ext}" if ext else stem
                content = payload_of(ext.lower(), rng)
                kind = rng.choice(
                    [tarfile.REGTYPE] * 20 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
                )
                info = member(name, kind, "/etc/passwd", len(content) if kind == tarfile.REGTYPE else 0)
                try:
                    tar.addfile(info, io.BytesIO(content))
                except (UnicodeError, ValueError):
                    continue  # a name that no tar can hold
    if rng.random() < 0.2:
        path.write_bytes(damaged(path.read_bytes(), rng))


def what_became(place: Path, number: int) -> str:
    rng = random.Random(number)
    (place / "in").mkdir(parents=True, exist_ok=True)
    for shard in range(rng.randint(1, EACH)):
        hostile_tar(place / "in" / f"{shard}.tar", rng)
    options = {
        "class_field": rng.choice([None, None, "y"]),
        "resize": rng.choice([None, 4, 4, 4]),
        "keys_by_shard": rng.random() < 0.5,
    }
    tars = sorted(map(str, (place / "in").iterdir()))
    try:
        _, notes = index_shards(tars, place / "out", max_bad=1.0, **options)
    except InputError as error:
        notes, refused = str(error).splitlines(), True
    else:
        refused = False
    assert all(note.isprintable() for note in notes)
    if refused:
        return "refused"
    index = Index.load(place / "out")
    images, bad = ImageReader(index, 0).usable(np.arange(index.count))
    assert images.shape == (index.count, *index.shape)
    problems = verify(place / "out").problems
    assert all(line.isprintable() for line in problems)
    assert bool(bad) == bool(problems), (bad, problems)
    return "bad samples" if bad else "used"


@pytest.mark.parametrize("count", [60, pytest.param(TARS, marks=pytest.mark.slow)])
def test_hostile_members(tmp_path: Path, count: int) -> None:
    """No other error than a refusal, no hang, and what verify finds is what reading finds."""
    became = Counter[str]()
    with bounded_memory(LIMIT_BYTES):
        for number in range(count):
            started = time.monotonic()
            became[what_became(tmp_path / str(number), number)] += 1
            assert time.monotonic() - started < LIMIT_S, number
    assert became["used"] + became["bad samples"] > count / 4
    assert became["refused"] > count / 10
