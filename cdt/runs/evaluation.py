"""What a run generates, measured: its samples before a judge, beside the data that it learnt from; judges of shards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cdt import filenames
from cdt.data.format.index import Index
from cdt.data.plan.order import stream_key
from cdt.data.read.reader import ImageReader, normalise
from cdt.diffusion.sampler import Sampler
from cdt.errors import InputError
from cdt.evaluate.divergence import Divergence, divergence_of
from cdt.evaluate.evaluation import ConstraintState, Evaluation, evaluate_samples
from cdt.judges import Classifier, attribute_label, train_classifier
from cdt.origin.pretrained import open_pretrained
from cdt.runs.run import Run, save_text, write_card
from cdt.spelling import did_you_mean


def read_images(index: Index, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, W] in [-1, 1] and labels [n] of some rows of a split, or of all."""
    rows = np.arange(index.count) if rows is None else rows
    images = normalise(ImageReader(index, cache_mb=0).images(rows))
    return torch.from_numpy(images), torch.from_numpy(index.classes[rows].astype(np.int64))


def train_judge(reference: Index, seed: int = 0) -> Classifier:
    """A classifier of the reference's classes, best trained on balanced data that the run has not seen."""
    images, labels = read_images(reference)
    return train_classifier(images, labels, reference.class_names, architecture="residual", seed=seed)


def classifier_of(
    index: Index, attribute: str | None = None, *, architecture: str = "plain", steps: int = 320, seed: int = 1
) -> Classifier:
    """A classifier of a split's classes or of the values of an attribute, as ``labelled`` names them.

    For constraints on what is generated: by default it has another architecture and seed than the judge of
    the evaluation, so that a model cannot please the one by the mistakes of the other.
    """
    targets, labels = labelled(index, attribute)
    images, _ = read_images(index)
    return train_classifier(images, targets, labels, architecture=architecture, steps=steps, seed=seed)


def labelled(index: Index, attribute: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """What every image shows [N] int64, and the labels [K]: the classes or values that occur, each at least once.

    Raises InputError for an unknown attribute.
    """
    if attribute is not None and attribute not in index.attributes:
        remedy = did_you_mean(attribute, index.attributes, "it has")
        raise InputError(f"{index.root} has no attribute {attribute!r}; {remedy}")
    column = index.classes if attribute is None else index.attributes[attribute]
    values, targets = np.unique(column, return_inverse=True)
    labels = (index.class_names[v] if attribute is None else attribute_label(attribute, v) for v in values.tolist())
    return torch.from_numpy(targets), tuple(labels)


def evaluate_run(run: Run, reference: Index, judge: Classifier, samples: Tensor, *, save: bool = True) -> Evaluation:
    """Judges samples [N, C, H, W] of a run; writes evaluation.json and renews its model card.

    Images of ``reference`` whose keys the run was not trained on are the held-out real images of the near-copy test.
    Raises InputError when the reference has other classes or shapes than the run's data.
    """
    trained_on = Index.load(run.config.data.shards, run.config.data.split, run.config.data.allow_pipe)
    for what, theirs, ours in (
        ("classes", reference.class_names, trained_on.class_names),
        ("shape", reference.shape, trained_on.shape),
    ):
        if theirs != ours:
            raise InputError(f"{reference.root}: {what} {theirs} differ from the run's {ours}")
    seen = set(trained_on.keys())
    unseen = np.array([row for row, key in enumerate(reference.keys()) if key not in seen], dtype=np.int64)
    evaluation = evaluate_samples(
        samples,
        judge,
        class_names=trained_on.class_names,
        class_counts=trained_on.class_counts.tolist(),
        reference=read_images(reference)[0],
        training=read_images(trained_on),
        held_out=read_images(reference, unseen) if len(unseen) else None,
        constraints=constraint_states(run),
        divergence=divergence_from_origin(run, min(len(samples), 1000)),
    )
    if save:
        save_text(run.directory / filenames.EVALUATION, evaluation.to_json() + "\n")
        write_card(run)
    return evaluation


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


def constraint_states(run: Run) -> list[ConstraintState]:
    """Where the last dual step left the run's constraints."""
    names = run.data["class_names"]
    states = []
    for row in run.constraint_rows():
        constraint = run.config.constraints[row["constraint"]]
        if unknown := [] if constraint.where else [name for name in constraint.classes if name not in names]:
            raise InputError(
                f"{run.directory / filenames.DATA} has no class {unknown[0]}, of which a constraint speaks"
            )
        classes = () if constraint.where else tuple(names.index(name) for name in constraint.classes)
        states.append(
            ConstraintState(
                name=row["constraint"],
                classes=classes,
                min_frequency=constraint.share,
                lambda_=row["lambda"],
                **{key: row[key] for key in ("loss", "threshold", "slack", "satisfied")},
            )
        )
    return states
