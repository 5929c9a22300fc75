"""What a run generates, measured: its samples before a judge, beside the data that it learnt from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cdt.data.index import Index
from cdt.data.reader import ImageReader, normalise
from cdt.errors import InputError
from cdt.evaluate.classifier import Classifier, train_classifier
from cdt.evaluate.evaluation import ConstraintState, Evaluation, evaluate_samples
from cdt.run import Run, save_text, write_card


def read_images(index: Index, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, W] in [-1, 1] and labels [n] of some rows of a split, or of all."""
    rows = np.arange(index.count) if rows is None else rows
    images = normalise(ImageReader(index, cache_mb=0).images(rows))
    return torch.from_numpy(images), torch.from_numpy(index.classes[rows].astype(np.int64))


def train_judge(reference: Index, seed: int = 0) -> Classifier:
    """A classifier of the reference's classes, best trained on balanced data that the run has not seen."""
    images, labels = read_images(reference)
    return train_classifier(images, labels, len(reference.class_names), seed=seed)


def evaluate_run(run: Run, reference: Index, judge: Classifier, samples: Tensor, *, save: bool = True) -> Evaluation:
    """Judges samples [N, C, H, W] of a run; writes evaluation.json and renews its model card.

    Images of ``reference`` whose keys the run was not trained on are the held-out real images of the near-copy test.
    Raises InputError when the reference has other classes or shapes than the run's data.
    """
    trained_on = Index.load(run.config.data.shards, run.config.data.split)
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
    )
    if save:
        save_text(run.directory / "evaluation.json", evaluation.to_json() + "\n")
        write_card(run)
    return evaluation


def constraint_states(run: Run) -> list[ConstraintState]:
    """Where the last dual step left the run's constraints."""
    names = run.data["class_names"]
    states = []
    for row in run.constraint_rows():
        constraint = run.config.constraints[row["constraint"]]
        classes = () if constraint.where else tuple(names.index(name) for name in constraint.classes)
        states.append(
            ConstraintState(
                name=row["constraint"],
                classes=classes,
                min_frequency=getattr(constraint, "min_frequency", None),
                lambda_=row["lambda"],
                **{key: row[key] for key in ("loss", "threshold", "slack", "satisfied")},
            )
        )
    return states
