"""Data sets of the Hugging Face hub, or local ones in its format: an image column and a label column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdt.data.format.decode import check_pixels, pixels
from cdt.data.sources.source import Source
from cdt.errors import InputError


def open_hf(name: str | Path, image: str | None = None, label: str | None = None) -> Source:
    """Every split of a data set: [C, H, W] uint8; C is 1 if all images are grey, otherwise 3.

    ``name``: a data set of the hub, or a directory written by ``save_to_disk`` or with files that ``load_dataset``
    reads. ``image``, ``label``: columns; by default the only ones of type Image and ClassLabel. No code from a data set
    is run. Raises InputError: no `datasets` package, no such data set, no such columns.
    """
    splits = _load(str(name))
    first = next(iter(splits.values()))
    image = _column(first.features, image, "Image", "--image")
    label = _column(first.features, label, "ClassLabel", "--label")
    class_names = list(first.features[label].names)
    keys, classes, names, places = [], [], [], []
    for split, data in splits.items():
        labels = np.asarray(data[label])
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(class_names)):
            raise InputError(f"{name}: split {split} has samples without a label")
        classes.append(labels)
        names += [split] * len(data)
        keys += [f"hf-{split}-{row:08d}" for row in range(len(data))]
        places += [(split, row) for row in range(len(data))]
    shapes, grey = [], True
    for split, row in places:
        found = splits[split][row][image]
        check_pixels(found.width, found.height)
        grey = grey and found.mode in ("1", "L")
        shapes.append((found.height, found.width))
    channels = 1 if grey else 3

    def read(position: int) -> np.ndarray:
        split, row = places[position]
        found: Image.Image = splits[split][row][image]
        return pixels(found.convert("L" if grey else "RGB"))

    return Source(
        class_names=class_names,
        keys=keys,
        classes=np.concatenate(classes).astype(np.int32),
        shapes=np.array([(channels, *shape) for shape in shapes]),
        dtype="uint8",
        read=read,
        origin={"name": "hf", "data_set": str(name)},
        splits=np.array(names),
    )


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
    parts: dict[str, Any] = {str(split): data for split, data in loaded.items()} if isinstance(loaded, dict) else {}
    return parts or {"train": loaded}


def _column(features: Mapping[str, Any], chosen: str | None, kind: str, option: str) -> str:
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if chosen is None and len(found) == 1:
        return found[0]
    if chosen in found:
        return str(chosen)
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    raise InputError(f"{option}: name one column of type {kind}; the columns are {listed}")
