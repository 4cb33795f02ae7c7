"""Names of the scalar parameters in a pytree."""

from typing import NamedTuple

import numpy as np
import pytest

from sbijax.diagnostics._names import scalar_names, to_matrix


class Pair(NamedTuple):
    """A theta with named fields."""

    rate: float
    scale: np.ndarray


@pytest.mark.parametrize(
    ("theta", "names"),
    [
        (np.zeros(()), ("theta",)),
        (np.zeros(2), ("theta[0]", "theta[1]")),
        ({"b": np.zeros(()), "a": np.zeros(1)}, ("a[0]", "b")),
        ({"a": np.zeros((1, 2))}, ("a[0, 0]", "a[0, 1]")),
        ({"g": {"a": 0.0, "b": np.zeros(1)}}, ("g.a", "g.b[0]")),
        ((0.0, np.zeros(2)), ("theta[0]", "theta[1][0]", "theta[1][1]")),
        ({"g": [0.0, 1.0]}, ("g[0]", "g[1]")),
        (Pair(0.0, np.zeros(2)), ("rate", "scale[0]", "scale[1]")),
    ],
)
def test_names(theta, names):
    assert scalar_names(theta) == names
    assert to_matrix(theta).shape == (len(names),)


def test_batch_axes_are_not_named():
    theta = {"a": np.arange(5.0), "b": np.arange(10.0).reshape(5, 2)}
    assert scalar_names(theta, 1) == ("a", "b[0]", "b[1]")
    expected = np.column_stack([theta["a"], theta["b"]])
    np.testing.assert_array_equal(to_matrix(theta, 1), expected)
