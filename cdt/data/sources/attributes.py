"""Attributes of images from a CSV file: numbers by which constraints can choose their samples."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np

from cdt.data.format.names import name_problem, number
from cdt.errors import InputError
from cdt.files import read_text
from cdt.spelling import first_few

MAX_BYTES = 1 << 30


def read_attributes(path: Path, files: list[str]) -> dict[str, np.ndarray]:
    """The columns of a CSV file in the order of ``files`` [N]: int64 if all values are whole, otherwise float64.

    The first column, ``file``, has paths as in ``files``, or only names if no two images share one. Raises
    InputError unless there is exactly one row for each image, with a number in every cell.
    """
    names, rows = _table(path)
    by_name = Counter(PurePosixPath(file).name for file in files)
    positions = {PurePosixPath(file).name: position for position, file in enumerate(files)}
    positions = {name: position for name, position in positions.items() if by_name[name] == 1}
    positions |= {file: position for position, file in enumerate(files)}

    # An accent has two forms in Unicode, and file systems differ in which they keep.
    alike = Counter(normalize("NFC", file) for file in positions)
    positions |= {nfc: positions[f] for f in list(positions) if alike[nfc := normalize("NFC", f)] == 1}

    row_of: dict[int, list[str]] = {}
    unknown, repeated = [], []
    for file, *cells in rows:
        position = next((positions[form] for form in _forms(file) if form in positions), None)
        if position is None:
            unknown.append(file)
        elif position in row_of:
            repeated.append(file)
        else:
            row_of[position] = cells
    missing = [file for position, file in enumerate(files) if position not in row_of]
    problems = (
        ("rows that name no image or more than one", unknown),
        ("images with a second row", repeated),
        ("images without a row", missing),
    )
    if any(found for _, found in problems):
        listed = "; ".join(f"{what} ({len(found)}): {first_few(found)}" for what, found in problems if found)
        raise InputError(f"{path} does not fit the images: {listed}")
    columns = zip(*(row_of[position] for position in range(len(files))), strict=True)
    return {name: _numbers(path, name, cells, files) for name, cells in zip(names, columns, strict=True)}


def _forms(file: str) -> list[str]:
    """What a cell may mean, the likeliest first: names may begin with a space, which people also put behind commas."""
    exact, stripped = (PurePosixPath(each).as_posix() for each in (file, file.strip()))
    return [exact, normalize("NFC", exact), stripped, normalize("NFC", stripped)]


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Names of the attributes, and the rows with the file first."""
    text = read_text(path, MAX_BYTES)
    try:
        lines = csv.reader(io.StringIO(text, newline=""))
        header, *rows = [row for row in lines if any(map(str.strip, row))] or [[]]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    header = list(map(str.strip, header))
    named = len(_without_end(header, 0))
    if not any(_without_end(row, named)[named:] for row in rows):
        header = header[:named]
    names = header[1:]
    rows = [[file, *map(str.strip, cells)] for file, *cells in (_without_end(row, len(header)) for row in rows)]
    if header[:1] != ["file"] or not names:
        raise InputError(f"{path} begins with {','.join(header)!r}; expected the columns file,<attribute>,...")
    if len(set(names)) < len(names) or "" in names:
        raise InputError(f"{path}: the columns {', '.join(names)} need names that differ")
    for name in names:
        if problem := name_problem(name):
            raise InputError(f"{path}: the name of the column {name[:40]!r} {problem}")
    if ragged := [row[0] for row in rows if len(row) != len(header)]:
        raise InputError(f"{path}: rows with other than {len(header)} cells ({len(ragged)}): {first_few(ragged)}")
    return names, rows


def _without_end(row: list[str], least: int) -> list[str]:
    """A row without the empty cells that a spreadsheet leaves at its end; the first ``least`` stay."""
    end = len(row)
    while end > least and not row[end - 1].strip():
        end -= 1
    return row[:end]


def _numbers(path: Path, name: str, cells: tuple[str, ...], files: list[str]) -> np.ndarray:
    values = [number(cell) for cell in cells]
    if bad := [position for position, value in enumerate(values) if value is None]:
        raise InputError(
            f"{path}: column {name!r} has {cells[bad[0]][:40]!r} for {files[bad[0]]} (such cells: {len(bad)}); "
            "expected numbers, whole ones below 2**53: code categories as 0, 1, 2, ..."
        )
    return np.array(values, np.int64 if all(isinstance(value, int) for value in values) else np.float64)
