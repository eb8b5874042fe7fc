"""The reference models: gradients against finite differences, and each option of LocalWork by its formula."""

import numpy as np
import pytest

from hansa.adapters.numpy import LinearModel, LogisticModel, MLPModel
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, DataError, TensorMismatch
from hansa.core.job import canonical
from hansa.core.model import LocalWork, value
from hansa.core.tensors import Tensors
from hansa.runtimes.forms import rebuild

MODELS = [
    LinearModel(4, 2, dtype="float64"),
    LogisticModel(4, 3, dtype="float64"),
    MLPModel((4, 5, 3), dtype="float64"),
]


def data_for(model, examples=17):
    rng = np.random.default_rng(5)
    y = rng.normal(size=(examples, 2)) if isinstance(model, LinearModel) else rng.integers(0, 3, examples)
    return Dataset(x=rng.normal(size=(examples, 4)), y=y)


def somewhere(model):
    rng = np.random.default_rng(9)
    return model.init(0).map(lambda a: rng.normal(size=a.shape))


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_gradients_agree_with_finite_differences(model):
    data, w = data_for(model), somewhere(model)
    moved = model.fit(w, data, LocalWork(lr=1.0, steps=1), np.random.default_rng(0)).params
    for name in w:
        for at in np.ndindex(w[name].shape):
            h = 1e-6
            loss = []
            for sign in (1, -1):
                nudged = np.array(w[name])
                nudged[at] += sign * h
                loss.append(value(model.evaluate(w.updated({name: nudged}), data))["loss"])
            assert w[name][at] - moved[name][at] == pytest.approx((loss[0] - loss[1]) / (2 * h), abs=1e-6)


def test_one_linear_step_is_the_hand_computed_one():
    # Error of x=2, y=3 at w=b=0 is −3; gradient of the square is 2·(−3)·2 = −12 for w and −6 for b.
    model = LinearModel(1, dtype="float64")
    fit = model.fit(model.init(0), Dataset(x=[[2.0]], y=[3.0]), LocalWork(lr=0.1, steps=1), np.random.default_rng(0))
    assert fit.params["weight"].tolist() == [[pytest.approx(1.2)]]
    assert fit.params["bias"].tolist() == [pytest.approx(0.6)]
    assert fit.metrics == {"loss": (9.0, 1.0)} and fit.steps == 1


def gradient(model, w, data, **terms):
    """The gradient that one step of SGD with lr 1 shows."""
    return w - model.fit(w, data, LocalWork(lr=1.0, steps=1, **terms), np.random.default_rng(0)).params


def test_each_term_enters_the_gradient_as_its_formula_says():
    model = MODELS[1]
    data, w = data_for(model), somewhere(model)
    g, other = gradient(model, w, data), w * 0.3
    mask = w.map(lambda a: (a > 0).astype(a.dtype))

    def same(left, right):
        for name in left:
            np.testing.assert_allclose(left[name], right[name], atol=1e-12)

    same(gradient(model, w, data, weight_decay=0.5), g + w * 0.5)
    same(gradient(model, w, data, correction=other), g + other)
    same(gradient(model, w, data, mask=mask), g.zip(mask, lambda a, b: a * b))
    same(gradient(model, w, data, proximal=0.7), g)  # at the start there is nothing to pull
    # Two steps: w₁ = w − g(w); the second adds μ(w₁ − w) = −μ·g.
    first = w - g
    second = gradient(model, first, data)
    two = model.fit(w, data, LocalWork(lr=1.0, steps=2, proximal=0.7), np.random.default_rng(0)).params
    same(two, first - (second + g * -0.7))
    # Momentum: v₂ = m·v₁ + g₂.
    two = model.fit(w, data, LocalWork(lr=1.0, steps=2, momentum=0.6), np.random.default_rng(0)).params
    same(two, first - (second + g * 0.6))


def test_the_first_adam_step_is_lr_times_the_sign():
    model = MODELS[2]
    data, w = data_for(model), somewhere(model)
    g = gradient(model, w, data)
    moved = model.fit(w, data, LocalWork(lr=0.01, steps=1, optimiser="adam", eps=0.0), np.random.default_rng(0)).params
    for name in w:
        np.testing.assert_allclose(w[name] - moved[name], 0.01 * np.sign(g[name]), atol=1e-12)


def test_masked_coordinates_stand_still_under_every_term():
    model = MODELS[2]
    data, w = data_for(model), somewhere(model)
    mask = w.map(lambda a: (a > 0).astype(a.dtype))
    for more in ({"momentum": 0.9}, {"optimiser": "adam"}):
        work = LocalWork(
            lr=0.1, epochs=2, batch_size=4, weight_decay=0.1, proximal=0.1, correction=w, mask=mask, **more
        )
        moved = model.fit(w, data, work, np.random.default_rng(0)).params
        assert all((moved[n][mask[n] == 0] == w[n][mask[n] == 0]).all() for n in w)
        assert any((moved[n][mask[n] == 1] != w[n][mask[n] == 1]).any() for n in w)


def test_steps_and_metrics_count_the_batches():
    model = MODELS[1]
    fit = model.fit(model.init(0), data_for(model), LocalWork(lr=0.1, epochs=3, batch_size=5), np.random.default_rng(0))
    assert fit.steps == 12
    assert fit.metrics["loss"][1] == fit.metrics["accuracy"][1] == 51.0


def test_fit_leaves_its_arguments_alone_and_repeats():
    model = MODELS[2]
    data, w = data_for(model), somewhere(model)
    before = w.map(np.array)
    work = LocalWork(lr=0.1, epochs=1, batch_size=4)
    one, two = (model.fit(w, data, work, np.random.default_rng(3)).params for _ in range(2))
    other = model.fit(w, data, work, np.random.default_rng(4)).params
    assert w == before and one == two and one != other


def test_float32_stays_float32():
    model = MLPModel((4, 5, 3))
    fit = model.fit(
        model.init(0), data_for(model), LocalWork(lr=0.1, epochs=1, optimiser="adam"), np.random.default_rng(0)
    )
    assert {dtype for _, dtype in fit.params.shapes.values()} == {"float32"}


def test_a_model_survives_its_canonical_form():
    for model in MODELS:
        assert rebuild(canonical(model)) == model


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (Dataset(x=np.zeros((2, 5)), y=[0, 1]), "has 5 numbers, but LogisticModel takes 4"),
        (Dataset(x=np.zeros((2, 4)), y=[0, 3]), "classes 0 to 3, but the model knows 0 to 2"),
        (Dataset(x=np.zeros((2, 4)), y=[0.5, 1.0]), "one integer class for each example"),
    ],
)
def test_data_that_does_not_fit_is_named(data, error):
    with pytest.raises(DataError, match=error):
        MODELS[1].evaluate(MODELS[1].init(0), data)


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="layers=0"):
        MLPModel((4, 0, 3))
    with pytest.raises(ConfigError, match="dtype='float16'"):
        LinearModel(3, dtype="float16")
    model = MODELS[1]
    work = LocalWork(lr=1.0, steps=1, mask=Tensors({"nose": np.ones(1)}))
    with pytest.raises(TensorMismatch, match="the mask names 'nose'"):
        model.fit(model.init(0), data_for(model), work, np.random.default_rng(0))
