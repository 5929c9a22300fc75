"""What a run generates, measured: its samples before a judge, beside the data that it learnt from; judges of shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdt import filenames
from cdt.data.format.index import Index
from cdt.data.format.problems import MAX_BAD
from cdt.data.plan.order import stream_key
from cdt.data.read.reader import normalise
from cdt.data.read.usable import UsableImages
from cdt.diffusion.sampler import Sampler
from cdt.dual import LINKS
from cdt.errors import InputError
from cdt.evaluate.divergence import divergence_of
from cdt.evaluate.evaluation import evaluate_samples
from cdt.evaluate.results import ConstraintState, Divergence, Evaluation
from cdt.judges import Classifier, attribute_label, train_classifier
from cdt.origin.pretrained import open_pretrained
from cdt.runs.run import Run, save_text, write_card
from cdt.spelling import did_you_mean, place_of

FRACTION = "data.max_bad_fraction"
"""The setting of a run that says which share of its samples may be unusable."""
LEAST = 2
"""Images of a label that a judge needs: one to train on, one to test."""


def read_images(index: Index, max_bad: float = MAX_BAD) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, W] in [-1, 1] and labels [n] of the usable samples of a split (``UsableImages``)."""
    images, rows = UsableImages(index, max_bad, FRACTION).read(np.arange(index.count))
    return torch.from_numpy(normalise(images)), torch.from_numpy(index.classes[rows].astype(np.int64))


def train_judge(reference: Index, seed: int = 0, max_bad: float = MAX_BAD) -> Classifier:
    """A classifier of the reference's classes, best trained on balanced data that the run has not seen.

    Unusable images are left out, as by ``UsableImages``.
    """
    learnt, images = _learnt(reference, None, UsableImages(reference, max_bad, FRACTION))
    return train_classifier(images, learnt.targets, learnt.labels, architecture="residual", seed=seed)


def classifier_of(
    index: Index,
    attribute: str | None = None,
    *,
    architecture: str = "plain",
    steps: int = 320,
    seed: int = 1,
    max_bad: float = MAX_BAD,
) -> Classifier:
    """A classifier of a split's classes or of the values of an attribute, as ``labelled`` names them.

    For constraints on what is generated: by default it has another architecture and seed than the judge of
    the evaluation, so that a model cannot please the one by the mistakes of the other. Unusable images are left out, as
    by ``UsableImages``.
    """
    learnt, images = _learnt(index, attribute, UsableImages(index, max_bad, "--max-bad"))
    return train_classifier(images, learnt.targets, learnt.labels, architecture=architecture, steps=steps, seed=seed)


def _learnt(index: Index, attribute: str | None, usable: UsableImages) -> tuple[Labelled, Tensor]:
    """What a judge can learn from those images that can be used; and these images [n, C, H, W] in [-1, 1]."""
    images, rows = usable.read(labelled(index, attribute).rows)
    found = labelled(index, attribute, rows)
    return found, torch.from_numpy(normalise(images[np.isin(rows, found.rows)]))


class Labelled(NamedTuple):
    """What a judge can learn from a split: labels with at least two images, one to train on and one to test."""

    rows: np.ndarray
    """Of the images [n] of these labels."""
    targets: Tensor
    """What each shows: [n] int64."""
    labels: tuple[str, ...]
    """[K]"""
    left_out: tuple[str, ...]
    """Classes without images, and labels of one image."""


def labelled(index: Index, attribute: str | None = None, among: np.ndarray | None = None) -> Labelled:
    """The classes of a split, or the values of an attribute; of all rows, or ``among`` some, which are in order.

    Raises InputError for an unknown attribute.
    """
    if attribute is not None and attribute not in index.attributes:
        remedy = did_you_mean(attribute, index.attributes, "it has")
        raise InputError(f"{index.root} has no attribute {attribute!r}; {remedy}")
    if attribute is None:
        column, names = index.classes, index.class_names
    else:
        values, column = np.unique(index.attributes[attribute], return_inverse=True)
        names = [attribute_label(attribute, value) for value in values]
    among = np.arange(index.count) if among is None else among
    judged = np.bincount(column[among], minlength=len(names)) >= LEAST
    rows = among[judged[column[among]]]
    targets = (np.cumsum(judged) - 1)[column[rows]]
    labels, left_out = (
        tuple(name for name, chosen in zip(names, mask, strict=True) if chosen) for mask in (judged, ~judged)
    )
    return Labelled(rows, torch.from_numpy(targets), labels, left_out)


def evaluate_run(run: Run, reference: Index, judge: Classifier, samples: Tensor, *, save: bool = True) -> Evaluation:
    """Judges samples [N, C, H, W] of a run; writes evaluation.json and renews its model card.

    Classes that the judge does not know are left out, by name. Images of ``reference`` whose keys the run was not
    trained on are the held-out real images of the near-copy test. Raises InputError when the reference has other
    classes or shapes than the run's data, or the judge other classes.
    """
    trained_on = Index.load(run.config.data.shards, run.config.data.split, run.config.data.allow_pipe)
    names = trained_on.class_names
    for what, theirs, ours in (("classes", reference.class_names, names), ("shape", reference.shape, trained_on.shape)):
        if theirs != ours:
            raise InputError(f"{reference.root}: {what} {theirs} differ from the run's {ours}")
    judged = columns_of(names, judge)
    real, learnt_from = (
        UsableImages(index, run.config.data.max_bad_fraction, FRACTION) for index in (reference, trained_on)
    )
    seen = set(trained_on.keys())
    unseen = np.array([row for row, key in enumerate(reference.keys()) if key not in seen], dtype=np.int64)
    held_out = _of_classes(reference, real, judged, unseen)
    evaluation = evaluate_samples(
        samples,
        judge,
        class_names=judge.labels,
        class_counts=trained_on.class_counts[judged].tolist(),
        reference=torch.from_numpy(normalise(real.read(np.arange(reference.count))[0])),
        training=_of_classes(trained_on, learnt_from, judged, np.arange(trained_on.count)),
        held_out=held_out if len(held_out[0]) else None,
        constraints=constraint_states(run, judged),
        divergence=divergence_from_origin(run, min(len(samples), 1000)),
        left_out=[name for number, name in enumerate(names) if number not in judged],
    )
    if save:
        save_text(run.directory / filenames.EVALUATION, evaluation.to_json() + "\n")
        write_card(run)
    return evaluation


def columns_of(class_names: Sequence[str], judge: Classifier) -> list[int]:
    """The numbers of the judge's classes. Raises InputError if it knows others."""
    if others := [label for label in judge.labels if label not in class_names]:
        raise InputError(f"the judge knows {others[0]!r}, which is no class of the data: {', '.join(class_names)}")
    return [class_names.index(label) for label in judge.labels]


def _of_classes(index: Index, usable: UsableImages, judged: list[int], rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Images and labels of those ``rows`` that are of the judged classes; labels are places among these."""
    place = np.full(len(index.class_names), -1)
    place[judged] = np.arange(len(judged))
    images, rows = usable.read(rows[place[index.classes[rows]] >= 0])
    return torch.from_numpy(normalise(images)), torch.from_numpy(place[index.classes[rows]])


def divergence_from_origin(run: Run, count: int, window: float | None = None, seed: int = 0) -> Divergence | None:
    """On fresh samples of the pretrained model, on the window of the run's constraint if not on another.

    None where the run did not start from one, or where that is not there any more.
    """
    config, process = run.config, run.process
    if config.init is None or not config.init.is_dir():
        return None
    windows: Mapping[str | None, float] = {**run.windows()}
    priors = {name: each for name, each in config.constraints.items() if each.samples.replayed}
    name, prior = next(iter(priors.items()), (None, None))
    origin = open_pretrained(config.init, check=run.check)
    window = windows.get(name) if window is None else window
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = origin.build(run.shape).to(device)
    sampler = Sampler(config.replay.sampler, process, run.shape, run.bounded)
    seeds = stream_key(seed, "divergence") >> 1  # of which replay has none
    samples = sampler.draw(teacher, count, seed=seeds, device=device)
    return divergence_of(
        run.network(device=device),
        teacher,
        process,
        samples.to(device),
        window=process.logsnr_max if window is None else window,
        statistic="loss" if prior is not None and prior.statistic.name == "loss" else "distance",
        budget=None if prior is None else prior.budget_in_nats,
        seed=seed,
    )


def constraint_states(run: Run, judged: Sequence[int]) -> list[ConstraintState]:
    """The run's constraints after the last dual step; classes are places among the ``judged`` ones."""
    names = run.data["class_names"]
    states = []
    for row in run.constraint_rows():
        constraint = run.config.constraints[row["constraint"]]
        numbers = [] if constraint.where else [place_of(name, names) for name in constraint.classes]
        known = all(number in judged for number in numbers)
        states.append(
            ConstraintState(
                name=row["constraint"],
                classes=tuple(judged.index(number) for number in numbers if number is not None) if known else (),
                min_frequency=constraint.share,
                unit=LINKS[constraint.link].unit,
                lambda_=row["lambda"],
                **{key: row[key] for key in ("loss", "threshold", "slack", "satisfied")},
            )
        )
    return states
