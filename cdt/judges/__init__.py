"""Judges decide what an image shows: classifiers trained by cdt, and networks supplied by the user."""

from __future__ import annotations

from cdt.judges.classifier import Classifier
from cdt.judges.judge import Judge, attribute_column, attribute_label, columns
from cdt.judges.loading import judge_digest, load_judge
from cdt.judges.networks import ARCHITECTURES
from cdt.judges.training import train_classifier

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "Judge",
    "attribute_column",
    "attribute_label",
    "columns",
    "judge_digest",
    "load_judge",
    "train_classifier",
]
