"""The base of every configuration class, and the mark of settings that may change when a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from cdt.words import below, items

LogSnr = Annotated[float, Field(ge=-100, le=100)]
"""A log signal-to-noise ratio, nats; noise schedules of images end within -20 and 20."""


class Config(BaseModel):
    """Immutable settings; unknown keys are errors, field docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, tree: Any) -> Any:
        """Pydantic would convert true to 1, and 1 to true."""
        mistaken = [*_mistaken(tree, [cls])] if isinstance(tree, dict) else []
        if mistaken:
            error = PydanticCustomError("truth_or_number", "booleans are not numbers")
            lines = [InitErrorDetails(type=error, loc=place, input=value) for place, value in mistaken]
            raise ValidationError.from_exception_data(cls.__name__, lines)
        return tree


def _mistaken(value: Any, wanted: list[Any]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Paths and values: booleans in place of numbers, and numbers in place of booleans."""
    if isinstance(value, list | tuple):
        inside = [*items(wanted)]
        for number, item in enumerate(value):
            yield from (((number, *place), found) for place, found in _mistaken(item, inside))
    elif isinstance(value, dict):
        of = below(wanted)
        for key, item in value.items():
            # Nested Config classes check their own fields.
            if not any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in of(key)):
                yield from (((key, *place), found) for place, found in _mistaken(item, of(key)))
    elif isinstance(value, bool):
        if bool not in wanted and any(map(_is_number, wanted)):
            yield (), value
    elif isinstance(value, int | float) and bool in wanted and not any(map(_is_number, wanted)):
        yield (), value


def _is_number(kind: Any) -> bool:
    return kind in (int, float) or (get_origin(kind) is Literal and isinstance(get_args(kind)[0], int))


class Resumable:
    """Says of a setting that it may change when a run is resumed: ``Annotated[int, RESUMABLE]``."""


RESUMABLE = Resumable()


def resumable(model: type[BaseModel]) -> Iterator[str]:
    """The settings that say so, as ``section.key``, of the sections of a whole configuration."""
    for section, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for key, setting in field.annotation.model_fields.items():
                if any(isinstance(mark, Resumable) for mark in setting.metadata):
                    yield f"{section}.{key}"
