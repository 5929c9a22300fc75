"""Selects the records of each split and their order: pure functions of class labels and a seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from cdt.data.format.header import SAFE_NAME
from cdt.data.format.names import number
from cdt.errors import InputError
from cdt.spelling import SHOWN, nearest, place_of

PART = re.compile(r'(?:^|,)\s*("(?:[^"]|"")*")?([^,]*)')
SPLIT, KEEP, ORDER = range(3)
"""Each use of the seed has its own random generators, so that one choice never changes another."""


def parse_fractions(text: str, option: str) -> dict[str, float]:
    """``"4=0.1,5=0.1"`` as a dictionary; names may be quoted, as by ``_parts``: ``'"cat, wild"=0.1'``.

    Raises InputError for another form, repeated names, and fractions that are not in (0, 1].
    """
    fractions: dict[str, float] = {}
    for quoted, plain in _parts(text, option):
        name, _, written = (piece.strip() for piece in plain.rpartition("="))
        if quoted is not None and not name:
            name = quoted
        elif quoted is not None:
            raise _no_fraction(repr(text), option)
        if name in fractions:
            raise InputError(f"{option}: {name!r} is there twice")
        if (fraction := number(written)) is None:
            raise _no_fraction(repr(plain if quoted is None else text), option)
        fractions[name] = float(fraction)
    check_fractions(fractions, option)
    return fractions


def parse_names(text: str, option: str) -> list[str]:
    """``"8,9"`` as a list; names may be quoted, as by ``_parts``. Raises InputError for empty and repeated names."""
    parts = _parts(text, option)
    names = [plain.strip() if quoted is None else quoted for quoted, plain in parts]
    behind_quotes = any(plain.strip() for quoted, plain in parts if quoted is not None)
    if behind_quotes or "" in names or len(set(names)) < len(names):
        raise InputError(f"{option}: {text!r} is not a list of different class names, as in 8,9")
    return names


def _parts(text: str, option: str) -> list[tuple[str | None, str]]:
    """What commas separate: the name in quotes, or None, and what is not in quotes.

    As in CSV, quotes keep commas and spaces at the ends, and a quote within them is doubled. Here they may stand around
    a name alone, with ``=0.1`` behind it. Raises InputError if they are not closed.
    """
    parts = [(found[1], found[2]) for found in PART.finditer(text)]
    if any(plain.startswith('"') for _, plain in parts):
        raise InputError(f'{option}: {text!r} has a quote that is not closed; as in CSV, "a, b" and "say ""a"""')
    return [(None if quoted is None else quoted[1:-1].replace('""', '"'), plain) for quoted, plain in parts]


def _as_part(name: str) -> str:
    """A name as ``_parts`` reads it."""
    plain = name == name.strip() and "," not in name and not name.startswith('"')
    return name if plain else '"' + name.replace('"', '""') + '"'


def check_fractions(fractions: Mapping[str, float], option: str) -> None:
    """Raise InputError unless every name has a fraction in (0, 1]."""
    for name, fraction in fractions.items():
        if not name or not 0 < fraction <= 1:
            raise _no_fraction(f"{name}={fraction:g}", option)


def _no_fraction(found: str, option: str) -> InputError:
    return InputError(f"{option}: {found} is not <name>=<fraction above 0, at most 1>, as in 4=0.1,5=0.1")


def class_indices(names: Sequence[str], class_names: Sequence[str], option: str) -> list[int]:
    """Positions of classes given by name. Raises InputError with the nearest name and a list for an unknown one."""
    places = []
    for name in names:
        if (place := place_of(name, class_names)) is None:
            near = nearest(name, class_names)
            hint = f" (did you mean {near!r}?)" if near else ""
            known = ", ".join(map(_as_part, class_names[:SHOWN])) + (", ..." if len(class_names) > SHOWN else "")
            raise InputError(f"{option}: there is no class {name!r}{hint}; the classes are {known}")
        places.append(place)
    return places


def choose(
    classes: np.ndarray,
    splits: np.ndarray,
    class_names: Sequence[str],
    *,
    keep: Mapping[str, float],
    only: Sequence[str],
    drop: Sequence[str],
    split: Mapping[str, float],
    seed: int,
) -> dict[str, np.ndarray]:
    """For every split, "train" first, the positions of its records in the order in which they are written.

    ``classes`` [N] are positions in ``class_names``, ``splits`` [N] the source's own splits. Raises InputError for
    unknown classes, wrong fractions, and choices that leave a split empty.
    """
    check_fractions(keep, "--keep")
    dropped = set(class_indices(drop, class_names, "--drop"))
    wanted = set(class_indices(only, class_names, "--only") or range(len(class_names))) - dropped
    kept = dict(zip(class_indices(list(keep), class_names, "--keep"), keep.values(), strict=True))
    if left_out := [class_names[class_index] for class_index in kept if class_index not in wanted]:
        raise InputError(f"--keep names {', '.join(left_out)}, which --only or --drop leaves out")
    assigned = assign_splits(classes, splits, split, seed)
    stays = np.isin(classes, list(wanted)) & thin(classes, assigned == "train", kept, seed)
    names = sorted(set(assigned[stays].tolist()), key=lambda name: (name != "train", name))
    if empty := [name for name in split if name not in names]:
        raise InputError(f"--split: no record is left for {', '.join(empty)}; give it a larger fraction")
    if not names:
        raise InputError("no record is left: --only and --drop leave out every class that has any")
    return {
        name: generator(seed, ORDER, number).permutation(np.flatnonzero(stays & (assigned == name)))
        for number, name in enumerate(names)
    }


def assign_splits(classes: np.ndarray, splits: np.ndarray, fractions: Mapping[str, float], seed: int) -> np.ndarray:
    """Divide the records of the split "train" by ``fractions``, each class by itself: [N] str.

    Raises InputError when they do not sum to 1, or a name cannot be used or is another split of the source.
    """
    if not fractions:
        return splits
    check_fractions(fractions, "--split")
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise InputError(f"--split: the fractions sum to {sum(fractions.values()):g}; expected 1")
    for name in fractions:
        if not SAFE_NAME.fullmatch(name):
            raise InputError(f"--split: the name {name!r} has other characters than letters, digits, - and _")
        if name != "train" and name in splits:
            raise InputError(f"--split: the source already has a split {name!r}; choose another name")
    assigned = splits.astype(object)
    for class_index in np.unique(classes):
        members = np.flatnonzero((classes == class_index) & (splits == "train"))
        members = generator(seed, SPLIT, class_index).permutation(members)
        borders = np.rint(np.cumsum(list(fractions.values()))[:-1] * len(members)).astype(int)
        for name, part in zip(fractions, np.split(members, borders), strict=True):
            assigned[part] = name
    return assigned.astype(str)


def thin(classes: np.ndarray, train: np.ndarray, keep: Mapping[int, float], seed: int) -> np.ndarray:
    """Which records [N] bool stay when classes keep a fraction (rounded, at least one) of those in ``train`` [N] bool.

    With the same seed, a smaller fraction keeps a subset of what a larger one keeps.
    """
    stays = np.ones(len(classes), bool)
    for class_index, fraction in keep.items():
        members = generator(seed, KEEP, class_index).permutation(np.flatnonzero(train & (classes == class_index)))
        stays[members[max(1, round(fraction * len(members))) :]] = False
    return stays


def generator(seed: int, purpose: int, item: int) -> np.random.Generator:
    """The random numbers for one purpose (``SPLIT``, ``KEEP``, ``ORDER``) and one class or split."""
    return np.random.default_rng([seed, purpose, int(item)])
