"""data.json: the data that a run was trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from cdt.data.format.header import MAX_VALUES, Dtype
from cdt.errors import InputError
from cdt.records import Count, read_record

Side = Annotated[int, Field(ge=1, le=MAX_VALUES)]


class _Origin(TypedDict):
    directory: str
    digest: str


class _Replay(TypedDict):
    samples: Count
    directory: str


@with_config(ConfigDict(extra="allow"))
class DataFacts(TypedDict):
    """What data.json states."""

    split: str
    shape: tuple[Side, Side, Side]
    dtype: Dtype
    class_names: list[str]
    class_counts: list[Count]
    source: dict[str, Any]
    init: NotRequired[_Origin | None]
    replay: NotRequired[_Replay | None]
    digests: NotRequired[dict[str, str]]
    """Of the indexes that are read (``digest_of``): ``data``, and where they are read ``probe``, ``replay`` and
    ``fresh``; of classifiers, ``classifier of NAME``. Runs of earlier versions have none, or none of classifiers."""


_KIND = TypeAdapter(DataFacts)


def read_facts(path: Path) -> DataFacts:
    """Raises InputError: it cannot be read, is damaged, or contradicts itself."""
    facts = read_record(path, _KIND)
    if len(facts["class_names"]) != len(facts["class_counts"]):
        raise InputError(f"{path} cannot be read: class_names and class_counts are of different lengths")
    if math.prod(facts["shape"]) > MAX_VALUES:
        raise InputError(f"{path} cannot be read: images of shape {list(facts['shape'])} have too many values")
    return facts
