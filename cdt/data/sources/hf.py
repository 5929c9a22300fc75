"""Data sets of the Hugging Face hub, or local ones in its format: an image column and a label column."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cdt.data.format.damage import BadDataError
from cdt.data.format.names import name_problem
from cdt.data.format.picture import MAX_PICTURE_BYTES, PictureFacts, picture_facts
from cdt.data.format.problems import Problems
from cdt.data.sources.folder import file_bytes, in_channels, pixels_of
from cdt.data.sources.source import Source
from cdt.errors import InputError, at


class _Place(NamedTuple):
    split: str
    row: int

    def __str__(self) -> str:
        return f"split {self.split}, row {self.row}"


def open_hf(name: str | Path, image: str | None = None, label: str | None = None) -> Source:
    """Every split of a data set: [C, H, W] uint8; C is 1 if all images are grey, otherwise 3.

    ``name``: a data set of the hub, or a directory written by ``save_to_disk`` or with files that ``load_dataset``
    reads. ``image``, ``label``: columns; by default the only ones of type Image and ClassLabel. No code from a data set
    is run. Images are those of ``read_picture``; rows that cannot be used are in ``problems``. Raises InputError: no
    `datasets` package, no such data set, no such columns.
    """
    splits = {split: data for split, data in _load(str(name)).items() if len(data)}
    if not splits:
        raise InputError(f"hf {name}: it has no rows")
    images, labels, names = {}, {}, {}
    for split, data in splits.items():
        with at(f"hf {name}: split {split}"):
            images[split] = _column(data.features, image, "Image", "--image")
            labels[split] = _column(data.features, label, "ClassLabel", "--label")
            names[split] = data.features[labels[split]].names
            _check_names(names[split])
    # Splits may number their classes differently.
    class_names = list(dict.fromkeys(name for of_split in names.values() for name in of_split))
    encoded = {split: _undecoded(data, images[split]) for split, data in splits.items()}
    places, classes, facts, problems = [], [], [], Problems()
    written = {split: split.replace(".", "-") for split in splits}  # a dot ends a key; names of the library have no -
    for split, data in splits.items():
        numbers = [class_names.index(class_name) for class_name in names[split]]
        for row, number in enumerate(data[labels[split]]):
            place = _Place(split, row)
            try:
                if number is None or not 0 <= number < len(numbers):
                    raise BadDataError("missing label", f"its {labels[split]} is {number}")
                facts.append(_facts(encoded[split][row]))
            except BadDataError as error:
                problems.add(error.kind, f"{place}: {error}")
                continue
            places.append(place)
            classes.append(numbers[number])
    channels = max((fact.shape[0] for fact in facts), default=1)
    notes = [f"split {split} is written as {name}" for split, name in written.items() if name != split]
    if transparent := sum(fact.transparent for fact in facts):
        notes.append(f"images with transparency, which becomes white: {transparent}")

    def read(position: int) -> np.ndarray:
        split, row = places[position]
        return in_channels(pixels_of(_payload(encoded[split][row])), channels)

    return Source(
        class_names=class_names,
        keys=[f"hf-{written[split]}-{row:08d}" for split, row in places],
        classes=np.array(classes, np.int32),
        shapes=np.array([(channels, *fact.shape[1:]) for fact in facts]).reshape(-1, 3),
        dtype="uint8",
        read=read,
        origin={"name": "hf", "data_set": str(name)},
        splits=np.array([written[split] for split, _ in places], dtype=str),
        paths=[str(place) for place in places],
        notes=notes,
        problems=problems,
    )


def _check_names(class_names: Sequence[str]) -> None:
    for class_name in class_names:
        if problem := name_problem(class_name):
            raise InputError(f"the name of the class {class_name!r} {problem}")


def _undecoded(data: Any, image: str) -> Any:
    """The rows' images as ``{"bytes", "path"}``: the library would decode them by other rules."""
    import datasets

    return data.select_columns([image]).cast_column(image, datasets.Image(decode=False))[image]


def _facts(cell: Mapping[str, Any] | None) -> PictureFacts:
    """Raises BadDataError."""
    payload = _payload(cell)
    try:
        return picture_facts(io.BytesIO(payload))
    except ValueError as error:
        raise BadDataError("damaged image", str(error)) from error


def _payload(cell: Mapping[str, Any] | None) -> bytes:
    """Raises BadDataError."""
    payload = cell["bytes"] if cell else None
    if payload is None and cell and cell["path"]:
        return file_bytes(Path(cell["path"]))
    if payload is None:
        raise BadDataError("missing image", "it has none")
    if len(payload) > MAX_PICTURE_BYTES:
        raise BadDataError("too large", f"{len(payload)} bytes; the limit is {MAX_PICTURE_BYTES}")
    return payload


def _load(name: str) -> Mapping[str, Any]:
    """Data by split."""
    try:
        import datasets
    except ImportError as error:
        raise InputError("shard hf needs the package datasets: `pip install cdt-diffusion[hf]`") from error
    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises errors of many kinds for missing data sets
        raise InputError(f"hf {name}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
    return {str(split): data for split, data in loaded.items()} if isinstance(loaded, dict) else {"train": loaded}


def _column(features: Mapping[str, Any], chosen: str | None, kind: str, option: str) -> str:
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if chosen is None and len(found) == 1:
        return found[0]
    if chosen in found:
        return str(chosen)
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    raise InputError(f"{option}: name one column of type {kind}; the columns are {listed}")
