from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cdt.errors import InputError
from cdt.judges.judge import attribute_column, attribute_label, columns, in_batches


class Uniform:
    labels = ("cat", "dog", "male=0", "male=1")

    def probabilities(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 4), 0.25)


def test_columns_of_labels() -> None:
    assert columns(Uniform(), ["male=1", "cat"], "constraints.a") == [3, 0]
    assert columns(Uniform(), [], "constraints.a") == []
    with pytest.raises(
        InputError, match=r"^constraints.a.class: the judge does not know 'cats'; did you mean 'cat'\?$"
    ):
        columns(Uniform(), ["dog", "cats"], "constraints.a.class")
    with pytest.raises(InputError, match=r"does not know 'x'; it knows: cat, dog, male=0, male=1$"):
        columns(Uniform(), ["x"], "constraints.a")


@pytest.mark.parametrize(
    ("value", "label"), [(1, "a=1"), (1.0, "a=1"), (-3.0, "a=-3"), (12345678, "a=12345678"), (0.1, "a=0.1")]
)
def test_labels_of_attributes(value: float, label: str) -> None:
    assert attribute_label("a", value) == label
    assert attribute_label("a", np.float32(value)) == label
    assert attribute_label("a", np.float64(value)) == label


@pytest.mark.parametrize(
    "values",
    [
        np.array([2**53 - 1, 2**53, -(2**53), 2**62, 2**62 + 1]),
        np.array([0.123456789, 0.123456788, 0.1, float(np.float32(0.1)), 1e-300, 2e-300]),
        np.array([0.1, np.nextafter(np.float32(0.1), np.float32(1))], np.float32),
    ],
)
def test_different_values_have_different_labels(values: np.ndarray) -> None:
    labels = [attribute_label("a", value) for value in values]
    assert len(set(labels)) == len(values)
    assert [values.dtype.type(label.removeprefix("a=")) for label in labels] == list(values)


class Fractions(Uniform):
    labels = ("v=0.00012207031", "v=0.1", "v=0.10000001", "v=x", "w=0.25", "v=1e300", "v=16777216")


def test_columns_of_values() -> None:
    """Labels may have the digits of float32; whole numbers have all of them."""
    judge, where = Fractions(), "constraints.a.where"
    assert attribute_label("v", np.float32(2**-13)) == "v=0.00012207031"
    for value, column in ((2**-13, 0), (0.1, 1), (float(np.float32(0.1)), 1), (16777216, 6)):
        assert attribute_column(judge, "v", value, where) == column
    for value in (0.25, 16777217, 0.3):
        with pytest.raises(InputError, match=r"^constraints\.a\.where: the judge does not know 'v="):
            attribute_column(judge, "v", value, where)


def test_batches() -> None:
    images = torch.arange(7.0).view(7, 1, 1, 1)
    sizes: list[int] = []

    def network(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return batch.flatten(1)

    assert in_batches(network, images, (1, 1, 1), batch_size=3).flatten().tolist() == list(range(7))
    assert sizes == [3, 3, 1]
    assert in_batches(network, images[:0], (1, 1, 1)).shape == (0, 1)
    with pytest.raises(InputError, match=r"reads images of shape \(1, 2, 1\), not \(1, 1, 1\)"):
        in_batches(network, images, (1, 2, 1))
