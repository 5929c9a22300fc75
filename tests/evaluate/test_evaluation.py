from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cdt.errors import InputError
from cdt.evaluate.evaluation import evaluate_samples
from cdt.evaluate.histogram import wilson_interval
from cdt.evaluate.results import ConstraintState, Evaluation
from cdt.judges import Classifier, train_classifier

NAMES = ["dark", "bright"]
FLOOR = ConstraintState("bright", (1,), 0.4, 0.25, 3.5, None, None, None)


def greys(level: float, n: int, seed: int) -> torch.Tensor:
    return level + 0.1 * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def judge() -> Classifier:
    images, targets = torch.cat([greys(-0.5, 40, 0), greys(0.5, 40, 1)]), torch.tensor([0] * 40 + [1] * 40)
    return train_classifier(images, targets, NAMES, architecture="residual", seed=0, steps=30)


@pytest.fixture(scope="module")
def evaluation(judge: Classifier) -> Evaluation:
    copied = greys(0.5, 10, 2)
    return evaluate_samples(
        torch.cat([greys(-0.5, 30, 3), copied]),
        judge,
        class_names=NAMES,
        class_counts=[90, 10],
        reference=torch.cat([greys(-0.5, 50, 4), greys(0.5, 50, 5)]),
        training=(copied, torch.ones(10, dtype=torch.int64)),
        held_out=(greys(0.5, 100, 6), torch.ones(100, dtype=torch.int64)),
        constraints=[FLOOR],
    )


def test_everything_is_measured(evaluation: Evaluation) -> None:
    assert evaluation.samples == 40
    assert evaluation.data_shares == (0.9, 0.1)
    assert evaluation.shares == (0.75, 0.25)
    low, high = wilson_interval([30, 10], 40)
    assert evaluation.intervals == ((low[0], high[0]), (low[1], high[1]))
    assert evaluation.tv_uniform == pytest.approx(0.25)
    assert 0.05 < evaluation.tv_floor < 0.08
    assert evaluation.judge_accuracy == 1
    assert evaluation.frechet is not None
    assert evaluation.frechet > 0
    (copies,) = evaluation.near_copies
    assert (copies.label, copies.generated, copies.near_copies) == (1, 10, 10)


def test_json_round_trip(evaluation: Evaluation) -> None:
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    tree = json.loads(evaluation.to_json())
    assert tree["constraints"][0]["lambda"] == 0.25
    assert tree["constraints"][0]["slack"] is None


def test_what_is_not_an_evaluation(evaluation: Evaluation) -> None:
    tree = json.loads(evaluation.to_json()) | {"tv_uniform": "much"}
    with pytest.raises(InputError, match="not an evaluation: tv_uniform: Input should be a valid number"):
        Evaluation.from_json(json.dumps(tree))
    with pytest.raises(InputError, match="not an evaluation: Invalid JSON"):
        Evaluation.from_json("{")


def test_one_sample_has_no_frechet_distance(judge: Classifier, evaluation: Evaluation) -> None:
    images = greys(0.5, 10, 2)
    training = images, torch.ones(10, dtype=torch.int64)
    single = evaluate_samples(
        images[:1], judge, class_names=NAMES, class_counts=[1, 1], reference=images, training=training
    )
    assert single.frechet is None
    assert single.shares == (0, 1)
    assert replace(evaluation, frechet=None) == Evaluation.from_json(replace(evaluation, frechet=None).to_json())


def test_bad_input(judge: Classifier) -> None:
    images = greys(0.5, 4, 0)
    training = images, torch.ones(4, dtype=torch.int64)
    with pytest.raises(InputError, match="no samples"):
        evaluate_samples(images[:0], judge, class_names=NAMES, class_counts=[1, 1], reference=images, training=training)
    with pytest.raises(InputError, match="the judge distinguishes dark, bright; there are 3 class counts of a, b, c"):
        evaluate_samples(
            images, judge, class_names=["a", "b", "c"], class_counts=[1, 1, 1], reference=images, training=training
        )
