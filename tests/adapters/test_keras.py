"""The Keras adapter, on the backend of this process; a slow test runs this file again on the other one."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

if importlib.util.find_spec("keras") is None:
    pytest.skip("needs Keras", allow_module_level=True)

from hansa.adapters.keras import BACKEND, KerasModel  # noqa: I001  (it chooses the backend before Keras)
import keras

from hansa.adapters.numpy import MLPModel
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, TensorMismatch
from hansa.core.job import canonical
from hansa.core.model import LocalWork, Role, value
from hansa.core.tensors import Tensors
from hansa.runtimes.forms import rebuild

WORK = LocalWork(lr=0.05, epochs=3, batch_size=10)
NAMES = {
    "0.weight": "sequential/dense/kernel",
    "0.bias": "sequential/dense/bias",
    "2.weight": "sequential/dense_1/kernel",
    "2.bias": "sequential/dense_1/bias",
}


def build():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((12,)), layers.Dense(8, activation="relu"), layers.Dense(3, activation="softmax")]
    )


def build_all():
    layers = keras.layers
    body = layers.Dense(8, activation="relu", kernel_regularizer="l2", trainable=False)
    rest = [layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input((12,)), body, *rest])


def unbuilt():
    return keras.Sequential([keras.layers.Dense(3)])


def half_squares(targets, outputs):
    return keras.ops.mean(keras.ops.square(targets - outputs)) / 2


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 53)
    return Dataset(x=rng.normal(size=(53, 12)) + np.eye(3, 12)[y], y=y)


def fit(model, data, work=WORK, seed=1, params=None):
    return model.fit(model.init(0) if params is None else params, data, work, np.random.default_rng(seed))


def renamed(tensors):
    return Tensors({NAMES[name]: tensors[name].T for name in tensors})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"momentum": 0.9},
        {"optimiser": "adam"},
        {"weight_decay": 0.1, "proximal": 0.5},
        {"correction": 0.5},
        {"mask": 0.0},
    ],
    ids=lambda more: "+".join(more) or "plain",
)
def test_keras_equals_the_numpy_reference(data, more):
    reference, model = MLPModel((12, 8, 3)), KerasModel(build, "sparse_categorical_crossentropy")
    params = reference.init(0)
    terms = {"correction": lambda c: params * c, "mask": lambda c: params.map(lambda a: (a > c).astype(a.dtype))}
    theirs = WORK.with_(**{name: terms[name](one) if name in terms else one for name, one in more.items()})
    ours = theirs.with_(**{name: renamed(getattr(theirs, name)) for name in more if name in terms})
    expected, found = fit(reference, data, theirs, params=params), fit(model, data, ours, params=renamed(params))
    assert found.steps == expected.steps
    for name, after in renamed(expected.params).items():
        np.testing.assert_allclose(found.params[name], after, atol=1e-5)
    assert value(found.metrics) == pytest.approx(value(expected.metrics), abs=1e-4)
    assert value(model.evaluate(found.params, data)) == pytest.approx(
        value(reference.evaluate(expected.params, data)), abs=1e-4
    )


def test_names_and_weights_are_the_same_at_every_build():
    model = KerasModel(build, "sparse_categorical_crossentropy")
    assert set(model.shapes()) == set(NAMES.values())
    assert model.init(1) == model.init(1) != model.init(2)


def test_roles_follow_keras_and_dropout_the_rng(data):
    model = KerasModel(build_all, "sparse_categorical_crossentropy", private=("*dense_1*",))
    roles = model.roles()
    assert {name.split("/", 1)[1]: role for name, role in roles.items()} == {
        "dense/kernel": Role.FROZEN,
        "dense/bias": Role.FROZEN,
        "batch_normalization/moving_mean": Role.BUFFER,
        "batch_normalization/moving_variance": Role.BUFFER,
        "dense_1/kernel": Role.PRIVATE,
        "dense_1/bias": Role.PRIVATE,
    }
    start = model.init(0)
    one = fit(model, data, params=start)
    other = fit(model, data, seed=2, params=start)
    again = fit(model, data, params=start)
    assert one.params == again.params != other.params and one.metrics == again.metrics
    for name in start:
        assert (one.params[name] == start[name]).all() == (roles.get(name) == Role.FROZEN), name


def test_a_loss_may_be_a_function(data):
    model = KerasModel(build, half_squares)
    assert model.metrics == {"loss": float("inf")}
    targets = Dataset(x=data["x"], y=np.eye(3, dtype=np.float32)[data["y"]])
    start = model.init(0)
    after = fit(model, targets, LocalWork(lr=0.5, epochs=20, batch_size=10), params=start)
    assert value(model.evaluate(after.params, targets))["loss"] < value(model.evaluate(start, targets))["loss"] / 2


def test_finish_gives_the_keras_model(data):
    model = KerasModel(build, "sparse_categorical_crossentropy")
    params = fit(model, data).params
    ready = model.finish(params)
    assert isinstance(ready, keras.Model)
    logits = np.maximum(data["x"] @ params["sequential/dense/kernel"] + params["sequential/dense/bias"], 0)
    logits = logits @ params["sequential/dense_1/kernel"] + params["sequential/dense_1/bias"]
    guess = ready(data["x"].astype("float32"), training=False)
    guess = guess.detach().numpy() if BACKEND == "torch" else np.asarray(guess)
    assert (guess.argmax(1) == logits.argmax(1)).all()
    with pytest.raises(TensorMismatch):
        model.finish(Tensors({"w": [1.0]}))


def test_a_model_survives_its_canonical_form():
    model = KerasModel(build, "sparse_categorical_crossentropy", frozen=["*/dense/*"])
    assert rebuild(canonical(model)) == model


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="begin it with keras.Input"):
        KerasModel(unbuilt, "mean_squared_error").init(0)
    with pytest.raises(ConfigError, match="Keras knows no loss of this name"):
        KerasModel(build, "mean_squared_terror")
    with pytest.raises(ConfigError, match="give its name"):
        KerasModel(build, keras.losses.MeanSquaredError())


def test_tensorflow_is_refused():
    found = subprocess.run(
        [sys.executable, "-c", "import hansa.adapters.keras"],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    assert "ConfigError: KERAS_BACKEND=tensorflow: set it to 'torch' or 'jax'" in found.stderr


@pytest.mark.slow
@pytest.mark.skipif("HANSA_OTHER_BACKEND" in os.environ, reason="this is the run on the other backend")
def test_all_of_this_holds_on_the_other_backend():
    other = {"torch": "jax", "jax": "torch"}[BACKEND]
    pytest.importorskip(other)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "KERAS_BACKEND": other, "HANSA_OTHER_BACKEND": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-3000:]
