"""A folder with one folder of images for each class: ``DIR/<class name>/**/*.png`` and other image types."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cdt.data.format.decode import check_pixels, pixels, reason
from cdt.data.sources.attributes import read_attributes
from cdt.data.sources.source import Source, first_few
from cdt.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test"}
ORIENTATION = 0x0112


def open_folder(directory: str | Path, attributes: str | Path | None = None) -> Source:
    """The images below every class folder, [C, H, W] uint8; classes are sorted by name.

    C is 1 if all images are grey, otherwise 3. Photographs are turned as their EXIF data say, transparency becomes
    white. ``attributes`` is a CSV file (see ``read_attributes``). Every image is opened once here for its size and
    mode; its pixels are read when its record is read. Raises InputError for any other layout and for
    images that cannot be read or have more than 8 bits per channel.
    """
    directory = Path(directory)
    class_names = _class_names(directory)
    files: list[str] = []
    others: list[str] = []
    classes: list[int] = []
    for class_index, name in enumerate(class_names):
        for file in _files(directory, name):
            if file.lower().endswith(SUFFIXES):
                files.append(file)
                classes.append(class_index)
            else:
                others.append(file)
    if not files:
        raise InputError(f"{directory} has no images; looked in its folders for {', '.join(SUFFIXES)}")

    headers = _headers(directory, files)
    channels = max(shape[0] for shape in headers)
    shapes = np.array([(channels, height, width) for _, height, width in headers])
    notes = []
    if others:
        notes.append(f"left out, as no images by their names: {first_few(others)}")
    if channels == 3 and (greys := sum(shape[0] == 1 for shape in headers)):
        notes.append(f"grey images that get three equal channels, as others are coloured: {greys}")

    def read(position: int) -> np.ndarray:
        return read_image(directory / files[position], channels)

    return Source(
        class_names=class_names,
        keys=safe_keys(files),
        classes=np.array(classes, np.int32),
        shapes=shapes,
        dtype="uint8",
        read=read,
        origin={"name": "folder", "directory": str(directory)}
        | ({"attributes": str(attributes)} if attributes else {}),
        splits=np.full(len(files), "train"),
        attributes=read_attributes(Path(attributes), files) if attributes else {},
        paths=files,
        notes=notes,
    )


def read_image(path: Path, channels: int) -> np.ndarray:
    """One image file as [channels, H, W] uint8, upright, on white where it is transparent."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image) if _has_exif(image) else image.copy()
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return pixels(upright.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # PIL's decoders raise nearly any error for damaged files
        raise InputError(f"{path} cannot be read: {reason(error)}") from error


def safe_keys(files: list[str]) -> list[str]:
    """Keys from relative paths: other characters than letters and digits become -, and a digest of the path is added
    if the key is not unique or too long."""
    plain = [re.sub(r"[^A-Za-z0-9_]+", "-", os.path.splitext(file)[0]).strip("-") for file in files]  # noqa: PTH122
    counts = Counter(plain)
    return [
        key if counts[key] == 1 and 0 < len(key) <= 60 else f"{key[:60]}-{_digest(file)}"
        for key, file in zip(plain, files, strict=True)
    ]


def _digest(file: str) -> str:
    return hashlib.sha256(os.fsencode(file)).hexdigest()[:12]


def _class_names(directory: Path) -> list[str]:
    if not directory.is_dir():
        raise InputError(f"no such directory: {directory}")
    entries = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    class_names = [entry.name for entry in entries if entry.is_dir()]
    loose = [entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    if loose:
        raise InputError(f"{directory}: {first_few(loose)} lie outside of any class; expected DIR/<class name>/<image>")
    if not class_names:
        raise InputError(f"{directory} has no class folders; expected DIR/<class name>/<image>")
    if set(map(str.lower, class_names)) <= SPLIT_NAMES:
        raise InputError(
            f"{directory} has the folders {', '.join(class_names)}, which are splits, not classes: give one of them "
            f"(`folder {directory / class_names[0]}`), and divide it with --split where needed"
        )
    return class_names


def _files(directory: Path, class_name: str) -> list[str]:
    """Relative paths with / below one class folder, without hidden files and folders, sorted."""
    found = []
    for folder, folders, names in os.walk(directory / class_name):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(folder).relative_to(directory)
        found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _headers(directory: Path, files: list[str]) -> list[tuple[int, int, int]]:
    """C, H, W of every image from its header, upright."""
    headers, problems = [], []
    for file in files:
        try:
            headers.append(_header(directory / file))
        except Exception as error:  # as in read_image
            problems.append(f"{file} ({reason(error)})")
    if problems:
        raise InputError(f"{directory}: {len(problems)} of {len(files)} images cannot be used: {first_few(problems)}")
    return headers


def _header(path: Path) -> tuple[int, int, int]:
    with Image.open(path, formats=FORMATS) as image:
        check_pixels(image.width, image.height)
        if image.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits per channel; convert it to 8 bits first")
        width, height = image.size
        if _has_exif(image) and image.getexif().get(ORIENTATION, 1) >= 5:
            width, height = height, width
        return (1 if image.mode in ("1", "L", "LA") else 3), height, width


def _has_exif(image: Image.Image) -> bool:
    # If the header has no EXIF data, Pillow would decode a whole PNG to search behind its pixels.
    return "exif" in image.info or image.format == "TIFF"
