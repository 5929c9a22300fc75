from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdt.config import RunConfig
from cdt.data.format.index import Index
from cdt.errors import InputError
from cdt.runs.evaluation import classifier_of
from cdt.training.check import check


def config(index: Index, **sections: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"shards": str(index.root)},
        "network": {"kind": "dit", "width": 32, "depth": 1, "heads": 2},
        "train": {"batch_size": 50},
        "constraints": {
            "four": {"class": 4, "min_frequency": 0.2},
            "low": {"class": [0, 1], "max_loss": 30.0},
            "small": {"class": [1, 2, 4], "max_loss": 30.0},
        },
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if name != "constraints" else section
    return RunConfig.model_validate(tree)


def test_a_period_is_an_epoch_unless_it_is_counted_in_steps(digits: Index) -> None:
    assert check(config(digits)).period_steps == -(-digits.count // 50)
    assert check(config(digits, data={"epoch_samples": 101})).period_steps == 3
    assert check(config(digits, dual={"period": 7})).period_steps == 7


def test_multipliers_rest_until_generated_shares_show_what_the_first_ones_do(digits: Index, tmp_path: Path) -> None:
    judge = tmp_path / "judge.safetensors"
    classifier_of(digits, steps=2).save(judge)
    shares = {"four": {"class": 4, "generated_frequency": {"min": 0.1, "classifier": str(judge)}}}

    def due(dual_steps: int, **constraints: Any) -> list[int]:
        train = {"dual_steps": dual_steps, "ema_decay": 0.9}
        bound = check(config(digits, dual={"period": 7}, train=train, **constraints))
        return [step for step in range(1, dual_steps + 1) if bound.moves_multipliers(step)]

    assert due(70) == [7 * k for k in range(1, 11)]
    assert due(70, constraints=shares) == [7 * k for k in range(2, 11)]  # a memory of 10 steps
    assert due(21, constraints=shares) == [7, 14, 21]  # a third of the phase


def test_networks_are_built_from_the_seed(digits: Index) -> None:
    builds = [check(config(digits, run={"seed": seed})).build for seed in (1, 1, 2)]
    states = [torch.cat([weight.flatten() for weight in build().parameters()]) for build in builds]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_all_estimators_train_on_the_same_mixture(digits: Index) -> None:
    """The share that a sample's cell has in the gradient: by how often it is drawn, times its weight."""
    bound = check(config(digits))
    r, lambdas = bound.requirements, np.array([0.3, 0.05, 0.8])
    gradient_shares = {}
    for estimator in ("resample", "reweight", "separate"):
        draws = bound.mixture_of(estimator)(lambdas)
        assert draws.probabilities.sum() == pytest.approx(1)
        by_stream = draws.probabilities * draws.stream_weights
        shares = by_stream[0] * r.cell_shares * draws.base_weights
        for i, rows in enumerate(r.rows.values()):
            shares = shares + by_stream[1 + i] * np.bincount(r.cells[rows], minlength=len(shares)) / len(rows)
        assert shares.sum() == pytest.approx(1)
        gradient_shares[estimator] = shares
    for estimator in ("reweight", "separate"):
        np.testing.assert_allclose(gradient_shares["resample"], gradient_shares[estimator], rtol=1e-12)
    assert bound.mixture_of("reweight")(lambdas).probabilities.tolist() == [1, 0, 0, 0]
    assert bound.mixture_of("separate")(lambdas).probabilities.tolist() == [0.25] * 4
    resampled = bound.mixture_of("resample")(lambdas)
    np.testing.assert_allclose(resampled.stream_weights, 1, rtol=1e-12)
    assert (resampled.base_weights == 1).all()


def floors(**shares: float) -> dict[str, Any]:
    return {f"c{name[1:]}": {"class": name[1:], "min_frequency": share} for name, share in shares.items()}


def test_floors_that_sum_to_one_are_met_together(digits: Index) -> None:
    check(config(digits, constraints={f"c{c}": {"class": c, "min_frequency": 0.1} for c in range(10)}))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"constraints": floors(_1=0.7, _2=0.5)}, "floors of c1, c2 sum to 1.2 and cannot be met.* by 0.8333 they"),
        (
            {"constraints": {f"c{c}": {"class": c, "frequency": 0.09} for c in range(10)}},
            "no distribution has all of these shares: c0 exactly 0.09, c1 exactly 0.09, ",
        ),
        ({"constraints": {"x": {"class": "ten", "max_loss": 1.0}}}, "constraints.x.class: 'ten' is not in the data"),
        ({"constraints": {"x": {"where": {"male": 1}, "max_loss": 1.0}}}, "constraints.x.where: 'male'"),
        ({"constraints": {"x": {"class": 1, "max_loss": 1.0, "window": 11}}}, "constraints.x.window: 11 is not within"),
        ({"dual": {"estimate": "training"}}, "dual.estimate: training needs one window.*found auto, null"),
        (
            {
                "constraints": {"x": {"class": 1, "max_loss": 1.0, "window": 2.5}},
                "dual": {"estimate": "training"},
                "engine": {"precision": "bf16"},
            },
            "dual.estimate: training in bf16 cannot be held against .* log-SNR of 2; the windows end at 2.5",
        ),
        ({"data": {"split": "val"}}, "has no split 'val'; it has train"),
        (
            {"engine": {"accumulation": 4}},
            r"train.batch_size: 50 is not divisible by engine.accumulation \(4\); the nearest that is: (48|52)",
        ),
        ({"network": {"patch": 3}}, "network.patch: patches of 3x3 do not tile"),
        ({"train": {"warm_steps": 0, "dual_steps": 0}}, "there is nothing to train"),
    ],
)
def test_what_does_not_fit_together_is_one_line(digits: Index, sections: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        check(config(digits, **sections))
    assert "\n" not in str(caught.value)


def test_the_training_estimate_works_with_one_window(digits: Index) -> None:
    both = {
        "four": {"class": 4, "min_frequency": 0.2, "window": 0.5},
        "low": {"class": 1, "max_loss": 30.0, "window": 0.5},
    }
    assert check(config(digits, constraints=both, dual={"estimate": "training"})).requirements.names == (
        "four",
        "low",
    )


@pytest.mark.parametrize(
    ("batch", "accumulation", "workers", "least", "room", "used"),
    [
        (48, 1, 4, None, None, 4),
        (48, 1, 5, None, None, 4),
        (50, 1, 4, None, None, 2),
        (7, 1, 3, None, None, 1),
        (48, 4, 5, None, None, 4),
        (48, 4, 8, None, None, 6),
        (48, 1, 0, None, None, 1),
        (48, 1, 4, 2, 3, 3),
        (50, 1, 4, 2, 3, 2),
        (48, 1, 4, 2, 1, 2),  # it waits for room
        (48, 1, 4, None, 3, 4),
        (48, 1, 4, 1, 9, 4),
    ],
)
def test_as_many_workers_train_as_there_is_room_for_and_a_batch_divides_over(
    digits: Index, batch: int, accumulation: int, workers: int, least: int | None, room: int | None, used: int
) -> None:
    run = {"workers": workers, "min_workers": least}
    train, engine = {"batch_size": batch}, {"accumulation": accumulation}
    assert config(digits, run=run, train=train, engine=engine).workers_used(room) == used
