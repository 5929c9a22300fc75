"""The model card that every run and export carries: what the model is, what was required, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cdt.evaluate.thresholds import CONFIDENT, SUSPICIOUS

PAPER = "https://arxiv.org/abs/2408.15094"


@dataclass(frozen=True)
class Requirement:
    """One constraint after the last dual step; None if nothing was measured. All values but lambda are in ``unit``."""

    name: str
    asks: str
    """The requirement in words."""
    budget: float | None
    threshold: float | None
    loss: float | None
    lambda_: float
    slack: float | None
    satisfied: bool | None
    window: float | None
    """Upper end of the log-SNR window in which the loss is taken; None: the full range."""
    unit: str = "nats"


@dataclass(frozen=True)
class CardFacts:
    """The facts that a card contains."""

    name: str
    source: str
    """Where the training data come from, in words."""
    class_counts: Mapping[str, int]
    """Training images by class name."""
    shape: tuple[int, int, int]
    network: str
    """The network in words."""
    parameters: int
    training: Mapping[str, object]
    """How it was trained, by the settings' names (steps of each phase, batch size, seed, ...)."""
    cdt_version: str
    requirements: Sequence[Requirement]
    usage: str
    """Python code that loads the model and draws samples."""
    evaluation: Mapping[str, Any] | None = None
    """The object in ``evaluation.json``; None: not evaluated."""
    library: str = "diffusers"
    """What loads the weights, as model hubs name it."""


def model_card(facts: CardFacts) -> str:
    """Markdown with the YAML front matter that model hubs read."""
    sections = (
        _front_matter(facts),
        f"# {facts.name}\n\n" + _summary(facts),
        "## Data\n\n" + _data(facts),
        "## Requirements\n\n" + _requirements(facts.requirements),
        "## What it generates\n\n" + _measured(facts.evaluation),
        "## Training\n\n" + _training(facts),
        f"## Use\n\n```python\n{facts.usage.strip()}\n```",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(facts)),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    tags = ["diffusion", "unconditional-image-generation", "constrained-learning", "dual-training", "cdt"]
    head = {
        "license": "other",
        "library_name": facts.library,
        "pipeline_tag": "unconditional-image-generation",
        "tags": tags,
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _summary(facts: CardFacts) -> str:
    C, H, W = facts.shape
    trained = "trained without constraints"
    if facts.requirements:
        many = len(facts.requirements)
        trained = f"trained under {many} requirement{'s' if many > 1 else ''}, stated below"
    return (
        f"An unconditional diffusion model of {H}x{W} images with {C} channel{'s' if C > 1 else ''}, {trained}. "
        f"The method is constrained diffusion by dual training ([arXiv 2408.15094]({PAPER})): each requirement has a "
        "multiplier (lambda) that grows while the requirement is violated and steers what the model is trained on."
    )


def _data(facts: CardFacts) -> str:
    total = sum(facts.class_counts.values())
    rows = [(name, f"{count:,}", f"{count / total:.1%}") for name, count in facts.class_counts.items()]
    return f"{facts.source}; {total:,} training images.\n\n" + _table(("class", "images", "share"), rows)


def _requirements(requirements: Sequence[Requirement]) -> str:
    if not requirements:
        return "None: the model follows its data."
    rows = [
        (
            *(r.name, r.asks, _nats(r.budget), _nats(r.threshold), _nats(r.loss), f"{r.lambda_:.3f}"),
            *(_nats(r.slack, "+"), {True: "yes", False: "no", None: "not measured"}[r.satisfied]),
        )
        for r in requirements
    ]
    head = ("name", "requirement", "budget", "threshold", "loss", "lambda", "slack", "satisfied")
    units = " and ".join(sorted({r.unit for r in requirements}))
    return (
        _table(head, rows)
        + f"\n\nBudget, threshold, loss and slack are in {units}. *Satisfied* refers to the constraint's "
        "own statistic, a denoising loss or minus the log of a share that the steering classifier counted; the shares "
        "that another classifier measured are in the next section."
    )


def _measured(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured."
    copies = {found["label"]: found for found in evaluation["near_copies"]}
    columns = zip(evaluation["class_names"], evaluation["shares"], evaluation["intervals"], strict=True)
    rows = [
        (name, f"{share:.1%}", f"{low:.1%} to {high:.1%}", *_near_copies(copies.get(c)))
        for c, (name, share, (low, high)) in enumerate(columns)
    ]
    frechet = evaluation["frechet"]
    figures = [
        f"Total variation of the shares from uniform: {evaluation['tv_uniform']:.3f} "
        f"(a uniform generator would show {evaluation['tv_floor']:.3f} on as many samples).",
        f"Samples that the classifier is sure of (above {CONFIDENT:g}): {evaluation['confident']:.1%}.",
        f"Fréchet distance in the classifier's features: {'not measured' if frechet is None else f'{frechet:.2f}'}.",
        "Near-copies are closer to a training image of the class than all but the closest 1 % of unseen real images "
        "are; *by chance* is how many there would be among as many unseen real images.",
    ]
    return (
        f"Classes of {evaluation['samples']:,} samples, as a classifier sees them:\n\n"
        + _table(("class", "share", "95% interval", "near-copies", "by chance"), rows)
        + "\n\n"
        + "\n".join(f"- {figure}" for figure in figures)
    )


def _near_copies(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "not measured", "-"
    return f"{found['near_copies']:,} of {found['generated']:,}", f"{found['expected']:.1f}"


def _training(facts: CardFacts) -> str:
    rows = [("network", facts.network), ("parameters", f"{facts.parameters:,}")]
    rows += [(name, str(value)) for name, value in facts.training.items()]
    return _table(("", ""), [*rows, ("cdt version", facts.cdt_version)])


def _limits(facts: CardFacts) -> list[str]:
    limits = []
    if facts.evaluation is None:
        limits.append("What the model generates was not measured; satisfied constraints do not replace that.")
    else:
        limits.append(
            f"Shares were judged by a classifier that is right on {facts.evaluation['judge_accuracy']:.1%} of "
            f"{facts.evaluation['judge_held_out']:,} held-out real images. Generated images can be harder; the "
            "intervals cover the sampling error, not the classifier's errors."
        )
        limits.append(_memorised(facts.evaluation))
    windows = sorted({r.window for r in facts.requirements if r.window is not None})
    if windows:
        limits.append(
            f"Constraint losses are taken at log-SNR up to {', '.join(f'{window:g}' for window in windows)}, where "
            "class is decided; they say nothing about finer detail."
        )
    if any(r.satisfied is False for r in facts.requirements):
        names = ", ".join(r.name for r in facts.requirements if r.satisfied is False)
        limits.append(f"Not satisfied when training ended: {names}.")
    limits.append("The model repeats what its data show, their biases and mistakes included. The data's licence holds.")
    return limits


def _memorised(evaluation: Mapping[str, Any]) -> str:
    found = evaluation["near_copies"]
    if not found:
        return "Whether it repeats training images was not measured."
    names = [evaluation["class_names"][n["label"]] for n in found if n["chance"] < SUSPICIOUS / len(found)]
    if names:
        return (
            f"It may repeat training images: more near-copies than chance explains in {', '.join(names)}. "
            "(Blurred images are nearer to everything and are counted too.)"
        )
    return "No more near-copies of training images than chance explains, in pixels; altered copies are not looked for."


def _nats(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Names from data sets must not break the table or become markup."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
