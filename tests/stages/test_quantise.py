"""What rounding to a grid promises, in float32 and in float64: no bias, an error below one step, no level too many."""

import numpy as np
import pytest

from hansa.stages.quantise import rounded


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bits", [2, 4, 8, 9])
def test_rounding_has_no_bias_and_errs_by_less_than_a_step(bits: int, dtype: str) -> None:
    levels, draws = (1 << (bits - 1)) - 1, 4000
    x = np.linspace(-1, 1, 41).astype(dtype)
    rng = np.random.default_rng(0)
    coded = np.stack([rounded(x, 1 / levels, levels, rng) for _ in range(draws)]).astype(np.float64)
    assert np.abs(coded / levels - x).max() < 1 / levels * (1 + 1e-5)
    assert np.abs(coded).max() <= levels
    # Five standard errors of a coin between two neighbouring levels.
    assert np.abs(coded.mean(axis=0) - x * levels).max() < 5 * 0.5 / np.sqrt(draws)


@pytest.mark.parametrize("step", [0.0, 1e-40, 1e-300])
def test_grid_too_fine_for_a_float_is_no_division_by_zero(step: float) -> None:
    x = np.array([0.0, 1e-40, -1e-40], np.float32)
    assert np.abs(rounded(x, step, 7, np.random.default_rng(0))).max() <= 7


def test_pieces_of_a_long_vector_are_rounded_alike() -> None:
    x = np.full(200_001, 0.25, np.float32)
    coded = rounded(x, 1.0, 1, np.random.default_rng(0))
    np.testing.assert_allclose([piece.mean() for piece in np.array_split(coded, 4)], 0.25, atol=0.01)
