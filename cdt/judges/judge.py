"""The interface of every judge: labels, and their probabilities for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from cdt.errors import InputError
from cdt.spelling import did_you_mean, digits, place_of


class Judge(Protocol):
    """Distinguishes K labels. Labels are names of classes, or ``NAME=VALUE`` for the values of an attribute."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels [K], each once."""
        ...

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities [N, K] of the labels for images [N, C, H, W] in [-1, 1], on the CPU.

        InputError if the images have another shape than the judge reads.
        """
        ...


def columns(judge: Judge, labels: Sequence[str], where: str) -> list[int]:
    """The columns of ``judge.probabilities`` for some labels, in their order.

    Raises InputError for a label that the judge does not know; ``where`` names the setting that uses it, as in
    "constraints.cats.class".
    """
    places = []
    for label in labels:
        if (place := place_of(label, judge.labels)) is None:
            remedy = did_you_mean(label, judge.labels, "it knows")
            raise InputError(f"{where}: the judge does not know {label!r}; {remedy}")
        places.append(place)
    return places


def attribute_label(name: str, value: float | np.floating | np.integer) -> str:
    """The label of an attribute's value: "male=1", "age=0.1". Different values have different labels.

    A value from data is given in its own type: the same digits are fewer in float32 than in float64.
    """
    return f"{name}={digits(value)}"


def attribute_column(judge: Judge, name: str, value: float, where: str) -> int:
    """The column of an attribute's value, as ``columns`` finds it.

    A fraction may have the digits that float32 needs: those of 2**-13 are fewer than all of them.
    """
    label = attribute_label(name, value)
    if label not in judge.labels and not float(value).is_integer():
        alike = [each for each in judge.labels if each.startswith(f"{name}=") and _rounds_alike(each, value)]
        label = alike[0] if len(alike) == 1 else label
    return columns(judge, [label], where)[0]


def _rounds_alike(label: str, value: float) -> bool:
    try:
        number = float(label.rpartition("=")[2])
    except ValueError:
        return False
    with np.errstate(over="ignore"):
        return bool(np.float32(number) == np.float32(value))


def in_batches(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    shape: tuple[int, int, int],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 512,
) -> Tensor:
    """The output of a network on ``device`` for images [N, C, H, W], on the CPU.

    Raises InputError for images of another shape, and for output that is not finite though the images are.
    """
    if images.shape[1:] != shape:
        raise InputError(f"the judge reads images of shape {shape}, not {tuple(images.shape[1:])}")
    with torch.inference_mode():
        output = torch.cat([network(batch.to(device)).cpu() for batch in images.split(batch_size)])
        if not output.isfinite().all() and images.isfinite().all():
            raise InputError("the judge's output has values that are not finite, and the images have none")
    return output


def _each_once(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError("a label appears twice")
    return labels


Labels = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2), AfterValidator(_each_once)]
"""Labels as stored in files."""
