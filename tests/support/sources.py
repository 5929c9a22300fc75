"""What holds for every source, and small images to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from cdt.data.format.header import SAFE_NAME
from cdt.data.sources import Source


def check_protocol(source: Source) -> None:
    """What holds for every source."""
    N = len(source)
    assert len(source.keys) == len(set(source.keys)) == len(source.classes) == len(source.splits) == N
    assert all(SAFE_NAME.fullmatch(key) for key in source.keys)
    assert source.shapes.shape == (N, 3)
    assert source.classes.min() >= 0
    assert source.classes.max() < len(source.class_names)
    for position in (0, N // 2, N - 1):
        record = source[position]
        assert record.image.shape == tuple(source.shapes[position])
        assert record.image.dtype == source.dtype
        assert (record.key, record.class_index) == (source.keys[position], source.classes[position])
        assert record.attributes == {name: values[position] for name, values in source.attributes.items()}


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), colour: Any = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path
