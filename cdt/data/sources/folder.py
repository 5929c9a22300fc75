"""A folder with one folder of images for each class: ``DIR/<class name>/**/*.png`` and other image types."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cdt.data.format.damage import BadDataError
from cdt.data.format.names import is_hidden, name_problem
from cdt.data.format.picture import MAX_PICTURE_BYTES, PictureFacts, picture_facts, read_picture
from cdt.data.format.problems import Problems
from cdt.data.sources.attributes import read_attributes
from cdt.data.sources.source import Source
from cdt.errors import InputError
from cdt.spelling import first_few, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test"}


@dataclass
class _Listing:
    """The files below the class folders, as paths relative to the directory, and what was left out."""

    images: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Files that are no images by their names."""
    hidden: list[str] = field(default_factory=list)
    """Hidden files and folders, and those of operating systems."""
    repeated: list[str] = field(default_factory=list)
    """Links to folders of the same class that were listed already."""

    def notes(self) -> list[str]:
        kinds = (
            ("as no images by their names", self.others),
            ("as hidden or of the operating system", self.hidden),
            ("as links to folders that are read already", self.repeated),
        )
        return [f"left out, {why}: {first_few(list(map(printable, names)))}" for why, names in kinds if names]


def open_folder(directory: str | Path, attributes: str | Path | None = None) -> Source:
    """The images below every class folder, [C, H, W] uint8; classes are sorted by name.

    C is 1 if all images are grey, otherwise 3. ``attributes`` is a CSV file (see ``read_attributes``). Links to folders
    are followed. Every image is opened once here for its size and mode (``picture_facts``); its pixels are read when
    its record is read. Images that cannot be used are in ``problems``. Raises InputError for any other layout, and for
    folders that cannot be read.
    """
    directory = Path(directory)
    listing = _Listing()
    class_names = _class_names(directory, listing)
    for class_index, name in enumerate(class_names):
        _list_class(directory, name, class_index, listing)
    if not listing.images:
        raise InputError(f"{directory} has no images; looked in its folders for {', '.join(SUFFIXES)}")

    usable, facts, problems = _headers(directory, listing.images)
    files = [listing.images[number] for number in usable]
    channels = max((fact.shape[0] for fact in facts), default=1)
    notes = listing.notes()
    counts = np.bincount(listing.classes, minlength=len(class_names))
    if empty := [printable(name) for name, count in zip(class_names, counts, strict=True) if not count]:
        notes.append(f"classes without images: {first_few(empty)}")
    if channels == 3 and (greys := sum(fact.shape[0] == 1 for fact in facts)):
        notes.append(f"grey images that get three equal channels, as others are coloured: {greys}")
    if transparent := sum(fact.transparent for fact in facts):
        notes.append(f"images with transparency, which becomes white: {transparent}")

    def read(position: int) -> np.ndarray:
        return in_channels(pixels_of(file_bytes(directory / files[position])), channels)

    return Source(
        class_names=class_names,
        keys=safe_keys(files),
        classes=np.array([listing.classes[number] for number in usable], np.int32),
        shapes=np.array([(channels, *fact.shape[1:]) for fact in facts]).reshape(-1, 3),
        dtype="uint8",
        read=read,
        origin={"name": "folder", "directory": str(directory)}
        | ({"attributes": str(attributes)} if attributes else {}),
        splits=np.full(len(files), "train"),
        attributes=_of(usable, read_attributes(Path(attributes), listing.images)) if attributes else {},
        paths=files,
        notes=notes,
        problems=problems,
    )


def file_bytes(path: Path) -> bytes:
    """The bytes of an image file. Raises BadDataError."""
    try:
        _check_file(path)
        return path.read_bytes()
    except OSError as error:
        raise BadDataError("unreadable file", error.strerror or str(error)) from error
    except ValueError as error:  # a NUL, in a path that a data set states
        raise BadDataError("unreadable file", "no file can have this name") from error


def pixels_of(payload: bytes) -> np.ndarray:
    """As ``read_picture``. Raises BadDataError."""
    try:
        return read_picture(payload)
    except ValueError as error:
        raise BadDataError("damaged image", str(error)) from error


def in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """A grey image [1, H, W] as three equal channels if ``channels`` is 3; others stay."""
    return image if len(image) == channels else np.repeat(image, channels, axis=0)


def _of(positions: list[int], columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[positions] for name, values in columns.items()}


def _headers(directory: Path, files: list[str]) -> tuple[list[int], list[PictureFacts], Problems]:
    """Which files can be used, what their headers say, and why the others cannot."""
    usable, facts, problems = [], [], Problems()
    for number, file in enumerate(files):
        try:
            _check_file(directory / file)
            with (directory / file).open("rb") as stream:
                facts.append(picture_facts(stream))
            usable.append(number)
        except BadDataError as error:
            problems.add(error.kind, f"{file}: {error}")
        except OSError as error:
            problems.add("unreadable file", f"{file}: {error.strerror or error}")
        except ValueError as error:
            problems.add("damaged image", f"{file}: {error}")
    return usable, facts, problems


def _check_file(path: Path) -> None:
    """Raises OSError if there is no file, BadDataError if it is a pipe or a device, or too large."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise BadDataError("unreadable file", "it is no regular file")
    if found.st_size > MAX_PICTURE_BYTES:
        raise BadDataError("too large", f"{found.st_size} bytes; the limit is {MAX_PICTURE_BYTES}")


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


def _class_names(directory: Path, listing: _Listing) -> list[str]:
    """The names of the class folders. What else is in ``directory`` is added to what was left out."""
    if not directory.is_dir():
        raise InputError(f"no such directory: {directory}")
    everything = sorted(directory.iterdir())
    entries = [entry for entry in everything if not is_hidden(entry.name)]
    if dangling := [entry.name for entry in entries if not entry.exists()]:
        raise InputError(f"{directory}: links that lead nowhere: {first_few(list(map(printable, dangling)))}")
    class_names = [entry.name for entry in entries if entry.is_dir()]
    listing.hidden += [entry.name for entry in everything if is_hidden(entry.name)]
    listing.others += [entry.name for entry in entries if not entry.is_dir()]
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
    for name in class_names:
        if problem := name_problem(name):
            raise InputError(f"{directory}: the name of the class folder {name!r} {problem}; rename it")
    return class_names


def _list_class(directory: Path, class_name: str, class_index: int, listing: _Listing) -> None:
    """Adds the files below one class folder, sorted. Raises InputError for a folder that cannot be read."""
    found, seen = [], set[tuple[int, int]]()
    left = [class_name]
    while left:  # no recursion: folders may be nested a thousand deep
        relative = left.pop()
        try:
            here = (directory / relative).stat()
            with os.scandir(directory / relative) as there:
                entries = sorted(there, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{directory / relative} cannot be read: {error.strerror}") from error
        if (place := (here.st_dev, here.st_ino)) in seen:
            listing.repeated.append(relative)
            continue
        seen.add(place)
        paths = [(f"{relative}/{entry.name}", entry) for entry in entries]
        listing.hidden += [path for path, entry in paths if is_hidden(entry.name)]
        shown = [(path, entry) for path, entry in paths if not is_hidden(entry.name)]
        left += [path for path, entry in reversed(shown) if _is_folder(entry)]
        found += [path for path, entry in shown if not _is_folder(entry)]
    for file in sorted(found):
        if file.lower().endswith(SUFFIXES):
            listing.images.append(file)
            listing.classes.append(class_index)
        else:
            listing.others.append(file)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
