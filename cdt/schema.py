"""The base of every configuration class, and the mark of settings that may change when a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable settings; unknown keys are errors, field docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


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
