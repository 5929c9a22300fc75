from __future__ import annotations

import numpy as np
import pytest

from cdt.dual.links import LINKS
from cdt.dual.sums import Sums


def sums(observations: list[list[float]]) -> Sums:
    values = [np.array(each, dtype=np.float64) for each in observations]
    columns = ([each.sum() for each in values], [(each**2).sum() for each in values], [len(each) for each in values])
    return Sums(*(np.array(column, dtype=np.float64) for column in columns))


def test_identity_adds_the_mean_difference_to_the_baseline() -> None:
    losses, errors = LINKS["identity"].losses(sums([[1.0, 3.0], [0.5, 0.5, 0.5]]), np.array([10.0, -1.0]))
    np.testing.assert_allclose(losses, [12.0, -0.5])
    np.testing.assert_allclose(errors, [1.0, 0.0], atol=1e-12)


def test_the_loss_of_a_share_is_its_negative_log() -> None:
    """400 soft counts of .2: the error of a log is that of the share, relative."""
    counts = [0.1, 0.3] * 200
    losses, errors = LINKS["negative_log"].losses(sums([counts]), np.array([7.0]))
    np.testing.assert_allclose(losses, -np.log(0.2))
    np.testing.assert_allclose(errors, np.std(counts, ddof=1) / np.sqrt(400) / 0.2)
    share = LINKS["negative_log"].share
    assert share is not None
    np.testing.assert_allclose(share(losses), 0.2)


def test_a_share_of_none_among_n_is_half_of_one() -> None:
    losses, errors = LINKS["negative_log"].losses(sums([[0.0] * 50]), np.zeros(1))
    assert losses[0] == pytest.approx(np.log(100))
    assert np.isfinite(errors[0])


@pytest.mark.parametrize("link", LINKS)
def test_a_tolerance_is_in_the_links_own_unit(link: str) -> None:
    """0.1 nats of a share is a tenth of it."""
    assert LINKS[link].unit == "nats"
    assert np.exp(-LINKS[link].tolerance) == pytest.approx(0.905, abs=1e-3)
    assert (LINKS[link].share is not None) == (link == "negative_log")
