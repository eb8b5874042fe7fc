"""Local work: what a pass is, and which values are refused."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hansa.core.errors import ConfigError
from hansa.core.model import LocalWork, Role, value
from hansa.core.tensors import Tensors
from hansa.testing.models import Line

SIZES = st.none() | st.integers(1, 12)


@given(st.integers(1, 30), st.integers(1, 4), SIZES, st.booleans(), st.integers(0, 9))
def test_a_pass_sees_each_example_once(examples: int, epochs: int, size: int | None, shuffle: bool, seed: int) -> None:
    work = LocalWork(lr=0.1, epochs=epochs, batch_size=size, shuffle=shuffle)
    batches = work.batches(examples, np.random.default_rng(seed))
    per_pass = math.ceil(examples / min(size or examples, examples))
    assert len(batches) == epochs * per_pass
    for start in range(0, len(batches), per_pass):
        assert sorted(np.concatenate(batches[start : start + per_pass])) == list(range(examples))
    assert all(len(batch) == min(size or examples, examples) for i, batch in enumerate(batches) if (i + 1) % per_pass)


@given(st.integers(1, 30), st.integers(1, 40), SIZES, st.integers(0, 9))
def test_steps_are_the_beginning_of_as_many_passes_as_they_need(
    n: int, steps: int, size: int | None, seed: int
) -> None:
    def by(**how: int) -> list[list[int]]:
        work = LocalWork(lr=0.1, batch_size=size, **how)
        return [rows.tolist() for rows in work.batches(n, np.random.default_rng(seed))]

    assert by(steps=steps) == by(epochs=steps)[:steps]


def test_the_same_rng_gives_the_same_batches_and_another_others() -> None:
    work = LocalWork(lr=0.1, epochs=1, batch_size=5)
    first, again, other = ([rows.tolist() for rows in work.batches(50, np.random.default_rng(s))] for s in (1, 1, 2))
    assert first == again != other


def test_without_shuffling_rows_come_in_order() -> None:
    batches = LocalWork(lr=0.1, epochs=1, batch_size=2, shuffle=False).batches(5, np.random.default_rng(0))
    assert [rows.tolist() for rows in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1, "steps": 1}, r"lr=-0\.1: a learning rate is finite and not negative"),
        ({"lr": math.nan, "steps": 1}, r"lr=nan"),
        ({"lr": math.inf, "steps": 1}, r"lr=inf"),
        ({"lr": 0.1}, r"epochs=None, steps=None: give exactly one"),
        ({"lr": 0.1, "steps": 1, "epochs": 1}, r"epochs=1, steps=1: give exactly one"),
        ({"lr": 0.1, "epochs": 0}, r"epochs=0: at least 1"),
        ({"lr": 0.1, "steps": 0}, r"steps=0: at least 1"),
        ({"lr": 0.1, "steps": 1, "batch_size": 0}, r"batch_size=0: at least 1"),
        (
            {"lr": 0.1, "steps": 1, "optimiser": "lion"},
            r"optimiser='lion': choose 'sgd' or 'adam', or override Model\.fit",
        ),
        ({"lr": 0.1, "steps": 1, "momentum": 1.0}, r"momentum=1\.0: it lies in \[0, 1\)"),
        ({"lr": 0.1, "steps": 1, "betas": (0.9, 1.0)}, r"betas=\(0\.9, 1\.0\): both lie in \[0, 1\)"),
        ({"lr": 0.1, "steps": 1, "weight_decay": -1.0}, r"weight_decay=-1\.0: it may not be negative"),
        ({"lr": 0.1, "steps": 1, "proximal": math.nan}, r"proximal=nan"),
    ],
)
def test_bad_values_name_the_field_the_value_and_the_range(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalWork(**settings)


def test_roles_pick_tensors() -> None:
    model = Line(given=(("b", "private"),))
    params = Tensors({"w": [1.0], "b": [2.0]})
    assert model.role("w") == Role.TRAINABLE
    assert model.named(params, Role.PRIVATE) == Tensors({"b": [2.0]})
    assert model.named(params, Role.TRAINABLE, Role.PRIVATE) == params


def test_a_metric_of_nothing_is_nan_not_an_error() -> None:
    found = value({"loss": (0.0, 0.0), "accuracy": (29.0, 30.0)})
    assert math.isnan(found["loss"])
    assert found["accuracy"] == 29 / 30
