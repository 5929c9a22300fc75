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


def test_the_tolerance_of_a_share_is_a_tenth_of_it() -> None:
    link = LINKS["negative_log"]
    assert link.unit == "nats"
    assert link.share is not None
    assert link.share(np.array([link.tolerance])).item() == pytest.approx(0.905, abs=1e-3)


@pytest.mark.parametrize("name", LINKS)
def test_a_link_has_a_unit_a_tolerance_and_losses_that_can_be_shares_again(name: str) -> None:
    link, sums = LINKS[name], Sums(np.array([2.0, 6.0]), np.array([2.0, 6.0]), np.array([8.0, 8.0]))
    assert link.unit
    assert link.tolerance > 0
    losses, errors = link.losses(sums, np.zeros(2))
    assert losses.shape == errors.shape == (2,)
    assert (errors > 0).all()
    if link.share is not None:
        assert link.share(losses) == pytest.approx([0.25, 0.75])
