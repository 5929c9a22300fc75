from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cdt.evaluate import memorisation
from cdt.evaluate.memorisation import near_copies, near_copy_rank, nearest_distances, probability_of_at_least


def draws(n: int, seed: int) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def labelled(images: Tensor, label: int = 0) -> tuple[Tensor, Tensor]:
    return images, torch.full((len(images),), label)


def test_distances_are_root_mean_squares_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, references = draws(23, 0), draws(7, 1)
    differences = queries[:, None] - references[None]
    expected = differences.square().mean(dim=(2, 3, 4)).sqrt().sort(dim=1).values
    assert torch.allclose(nearest_distances(queries, references), expected[:, 0], atol=1e-6)
    monkeypatch.setattr(memorisation, "CHUNK_ELEMENTS", 20)
    assert torch.allclose(nearest_distances(queries, references), expected[:, 0], atol=1e-6)
    assert torch.allclose(nearest_distances(queries, references, nth=3), expected[:, 2], atol=1e-6)


def test_threshold_is_the_closest_hundredth_or_the_minimum() -> None:
    assert [near_copy_rank(n) for n in (1, 50, 98, 99, 198, 199, 1000)] == [1, 1, 1, 1, 1, 2, 10]


def test_chance_agrees_with_simulation() -> None:
    real, further, rank = 60, 40, 2
    uniform = np.random.default_rng(0).random((20_000, real + further))
    below = (uniform[:, real:] < np.sort(uniform[:, :real])[:, [rank - 1]]).sum(axis=1)
    assert below.mean() == pytest.approx(further * rank / (real + 1), rel=0.03)
    for count in range(6):
        simulated = (below >= count).mean()
        assert probability_of_at_least(count, further, rank, real) == pytest.approx(simulated, abs=0.015)


def test_fresh_images_are_near_copies_at_the_nominal_rate() -> None:
    found = [
        near_copies(labelled(draws(300, 3 * s)), labelled(draws(20, 3 * s + 1)), labelled(draws(150, 3 * s + 2)))[0]
        for s in range(40)
    ]
    assert sum(n.expected for n in found) == pytest.approx(40 * 300 / 151)
    assert sum(n.near_copies for n in found) == pytest.approx(40 * 300 / 151, rel=0.4)
    assert sum(n.chance < 0.01 for n in found) <= 3


def test_copies_are_found_even_when_a_little_noisy() -> None:
    training, held_out = draws(20, 1), draws(150, 2)
    generated = torch.cat([training + 0.05 * draws(20, 4), draws(50, 5)])
    (found,) = near_copies(labelled(generated), labelled(training), labelled(held_out))
    assert (found.training, found.generated) == (20, 70)
    assert 20 <= found.near_copies <= 24
    assert found.chance < 1e-6


def test_classes_are_kept_apart() -> None:
    a, b = draws(20, 0), draws(20, 1) + 5
    training = torch.cat([a, b]), torch.tensor([0] * 20 + [3] * 20)
    held_out = torch.cat([draws(30, 2), draws(30, 3) + 5]), torch.tensor([0] * 30 + [3] * 30)
    # Copies of class 0 that are taken for class 3 lie far from class 3's training images.
    first, second = near_copies((torch.cat([a, a]), torch.tensor([0] * 20 + [3] * 20)), training, held_out)
    assert (first.label, first.near_copies, first.generated) == (0, 20, 20)
    assert (second.label, second.near_copies, second.generated) == (3, 0, 20)


def test_without_held_out_images_training_images_are_compared_with_each_other() -> None:
    training = draws(40, 0)
    (found,) = near_copies(labelled(training[:5]), labelled(training), None)
    off_diagonal = torch.cdist(training.flatten(1), training.flatten(1)) + 100 * torch.eye(40)
    assert found.threshold == pytest.approx(float(off_diagonal.min()) / 4, abs=1e-5)
    assert found.near_copies == 5
    assert near_copies(labelled(training), labelled(training[:1]), None) == ()


def test_a_class_that_was_not_generated() -> None:
    (found,) = near_copies(labelled(draws(5, 0), label=1), labelled(draws(5, 1)), labelled(draws(5, 2)))
    assert (found.generated, found.near_copies, found.expected, found.chance) == (0, 0, 0, 1)
    assert found.median_generated is None
