from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from cdt.explain import explain, shown
from cdt.schema import Config


def even(value: float) -> float:
    if value % 2:
        raise ValueError(f"{value:g} is odd: even numbers are needed")
    return value


class UNet(Config):
    kind: Literal["unet"]
    channels: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    class_: int = Field(default=0, alias="class")


class DiT(Config):
    kind: Literal["dit"]
    width: int = Field(default=64, ge=8, le=4096, multiple_of=8)

    @model_validator(mode="after")
    def _wide_enough(self) -> DiT:
        if self.width == 8:
            raise ValueError("too narrow for its heads")
        return self


class MinFrequency(Config):
    min_frequency: float = Field(gt=0, le=1)


class MaxLoss(Config):
    max_loss: float = Field(allow_inf_nan=False)


def kind(tree: Any) -> str | None:
    return next((name for name in ("min_frequency", "max_loss") if isinstance(tree, dict) and name in tree), None)


Constraint = Annotated[
    Annotated[MinFrequency, Tag("min_frequency")] | Annotated[MaxLoss, Tag("max_loss")], Discriminator(kind)
]


class Branch(Config):
    left: Branch | None = None
    size: int = 1


class Root(Config):
    network: Annotated[UNet | DiT, Field(discriminator="kind")] = DiT(kind="dit")
    constraints: dict[str, Constraint] = Field(default_factory=dict)
    schedule: Literal["cosine", "linear_beta"] = "cosine"
    stage: Literal[0, 1, 2, 3] = 1
    eta: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    period: Literal["epoch"] | Annotated[int, AfterValidator(even)] = "epoch"
    cap: float | None = Field(default=None, ge=0)
    resume: Literal["no"] | UNet = "no"
    teacher: UNet | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    names: list[str] = Field(default_factory=list, min_length=1)
    code: str = Field(default="a", pattern="^[a-z]$")
    flag: bool = False
    dir: Path = Path("runs")
    share: dict[Literal["four", "five"], Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    raw: dict[str, Any] = Field(default_factory=dict)
    tree: Branch = Branch()
    bare: list = Field(default_factory=list)
    own: Annotated[float, AfterValidator(even)] = 0


class Needs(Config):
    shards: Path
    epochs: int = Field(ge=1)
    unet: UNet


def problems(tree: dict, model: type[BaseModel] = Root) -> list[str]:
    with pytest.raises(ValidationError) as error:
        model.model_validate(tree)
    return explain(model, error.value)


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"schedule": "cosin"}, 'schedule: got "cosin"; must be cosine or linear_beta; did you mean cosine?'),
        ({"schedule": "COSINE"}, 'schedule: got "COSINE"; must be cosine or linear_beta; did you mean cosine?'),
        ({"schedule": "x"}, 'schedule: got "x"; must be cosine or linear_beta'),
        ({"schedule": None}, "schedule: got null; must be cosine or linear_beta"),
        ({"stage": 4}, "stage: got 4; must be 0, 1, 2 or 3"),
        ({"cap": -1}, "cap: got -1; must be null or a number >= 0"),
        ({"flag": "maybe"}, 'flag: got "maybe"; must be true or false'),
        ({"dir": 3}, "dir: got 3; must be a string"),
        ({"raw": [1]}, "raw: got [1]; must be a mapping"),
        ({"names": []}, "names: got []; must be a list of length >= 1"),
        ({"bare": 1}, "bare: got 1; must be a list"),
        ({"names": ["a", 2]}, "names[1]: got 2; must be a string"),
        ({"sizes": [1, 0]}, "sizes[1]: got 0; must be an integer >= 1"),
        ({"betas": [0.9]}, "betas[1]: missing; must be a number"),
        ({"betas": 0.9}, "betas: got 0.9; must be a list of 2 values"),
        ({"betas": [0.9, "x"]}, 'betas[1]: got "x"; must be a number'),
        ({"code": "A"}, 'code: got "A"; must be a string that matches ^[a-z]$'),
        ({"tree": {"left": {"left": {"size": "x"}}}}, 'tree.left.left.size: got "x"; must be an integer'),
        ({"own": 3}, "own: 3 is odd: even numbers are needed"),
        ({"schedul": "cosine"}, "schedul: unknown key; did you mean schedule?"),
        ({"tree": {"x": 1}}, "tree.x: unknown key; known here: left, size"),
    ],
)
def test_fields(tree: dict, line: str) -> None:
    assert problems(tree) == [line]


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"eta": -1}, "eta: got -1; must be auto or a number > 0"),
        ({"eta": "aut"}, 'eta: got "aut"; must be auto or a number > 0; did you mean auto?'),
        ({"period": "epcoh"}, 'period: got "epcoh"; must be epoch or an integer; did you mean epoch?'),
        ({"period": 3}, "period: 3 is odd: even numbers are needed"),
        ({"resume": 3}, "resume: got 3; must be no or a mapping with the keys kind, channels, class"),
        ({"resume": {"kind": "unet", "class": "x"}}, 'resume.class: got "x"; must be an integer'),
        ({"teacher": 3}, "teacher: got 3; must be null or a mapping with the keys kind, channels, class"),
    ],
)
def test_of_a_union_one_line_is_left(tree: dict, line: str) -> None:
    assert problems(tree) == [line]


@pytest.mark.parametrize(
    ("network", "line"),
    [
        ({"kind": "dti"}, 'network.kind: got "dti"; must be unet or dit; did you mean dit?'),
        ({"width": 64}, "network.kind: missing; must be unet or dit"),
        ("unet", 'network: got "unet"; must be a mapping with kind: unet | dit'),
        ({"kind": "dit", "width": 7}, "network.width: got 7; must be an integer >= 8 and <= 4096 and a multiple of 8"),
        ({"kind": "dit", "wdith": 64}, "network.wdith: unknown key; did you mean width?"),
        ({"kind": "dit", "channels": [1]}, "network.channels: unknown key; known here: kind, width"),
        ({"kind": "dit", "width": 8}, "network: too narrow for its heads"),
        ({"kind": "unet", "channels": [8, 0]}, "network.channels[1]: got 0; must be an integer >= 1"),
        ({"kind": "unet", "class": "x"}, 'network.class: got "x"; must be an integer'),
        ({"kind": "unet", "clas": 1}, "network.clas: unknown key; did you mean class?"),
    ],
)
def test_discriminated_by_a_literal(network: object, line: str) -> None:
    assert problems({"network": network}) == [line]


@pytest.mark.parametrize(
    ("constraint", "line"),
    [
        ({"min_frequency": 2}, "constraints.min_frequency.min_frequency: got 2; must be a number > 0 and <= 1"),
        ({"min_frequency": 0.1, "onn": 1}, "constraints.min_frequency.onn: unknown key; known here: min_frequency"),
        ({"max_loss": float("inf")}, "constraints.min_frequency.max_loss: got Infinity; must be a finite number"),
        (
            {"of": 1},
            'constraints.min_frequency: got {"of": 1}; '
            "must be a mapping with the keys min_frequency or a mapping with the keys max_loss",
        ),
    ],
)
def test_discriminated_by_a_function_the_tag_stays_out_of_the_path(constraint: dict, line: str) -> None:
    """The name of the constraint, its tag and its key are the same word here: each must be told from the others."""
    assert problems({"constraints": {"min_frequency": constraint}}) == [line]


def test_keys_of_a_mapping() -> None:
    assert problems({"share": {"foru": 1, "five": 0}}) == [
        'share.foru: got "foru"; must be four or five; did you mean four?',
        "share.five: got 0; must be a number > 0",
    ]


def test_what_is_missing() -> None:
    assert problems({}, Needs) == [
        "shards: missing; must be a string",
        "epochs: missing; must be an integer >= 1",
        "unet: missing; must be a mapping with the keys kind, channels, class",
    ]


def test_all_problems_are_told_at_once_in_the_order_of_the_fields() -> None:
    tree = {
        "stage": 9,
        "network": {"kind": "dit", "width": 0},
        "eta": [],
        "constraints": {"a": {"max_loss": "x"}},
        "x": 1,
    }
    assert [line.split(":")[0] for line in problems(tree)] == [
        "network.width",
        "constraints.a.max_loss",
        "stage",
        "eta",
        "x",
    ]


def test_a_kind_of_value_that_is_not_known_here_is_told_in_pydantics_words() -> None:
    class Plain(Config):
        value: complex = 0

    assert problems({"value": "x"}, Plain)[0].startswith('value: got "x"; Input should be a valid')


def test_a_validator_of_the_whole() -> None:
    class Both(Config):
        a: int = 0

        @model_validator(mode="after")
        def _never(self) -> Both:
            raise ValueError("a and b: give one of them")

    assert problems({}, Both) == ["a and b: give one of them"]


def test_long_values_are_cut() -> None:
    assert shown("x" * 100) == '"' + "x" * 58 + "…"
    assert [shown(value) for value in (None, True, 1e-4, "é", [1], {"a": 2})] == [
        "null",
        "true",
        "0.0001",
        '"é"',
        "[1]",
        '{"a": 2}',
    ]
