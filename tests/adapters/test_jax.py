"""The JAX adapter: the reference's numbers, from compiled loops."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from hansa.adapters.jax import JaxModel, cross_entropy, squared_error  # noqa: E402
from hansa.adapters.numpy import LinearModel, MLPModel  # noqa: E402
from hansa.core.data import Dataset  # noqa: E402
from hansa.core.errors import ConfigError, DataError, TensorMismatch  # noqa: E402
from hansa.core.job import canonical  # noqa: E402
from hansa.core.model import LocalWork, Role, value  # noqa: E402
from hansa.core.tensors import Tensors  # noqa: E402
from hansa.runtimes.forms import rebuild  # noqa: E402

WORK = LocalWork(lr=0.05, epochs=3, batch_size=10)


def make(key):
    one, two = jax.random.split(key)
    return {
        "0": {"weight": jax.random.normal(one, (8, 12)) / 4, "bias": jnp.zeros(8)},
        "2": {"weight": jax.random.normal(two, (3, 8)) / 3, "bias": jnp.zeros(3)},
    }


def apply(params, x):
    h = jax.nn.relu(x @ params["0"]["weight"].T + params["0"]["bias"])
    return h @ params["2"]["weight"].T + params["2"]["bias"]


def apply_dropout(params, x, key):
    h = jax.nn.relu(x @ params["0"]["weight"].T + params["0"]["bias"])
    if key is not None:
        h = h * jax.random.bernoulli(key, 0.5, h.shape) * 2
    return h @ params["2"]["weight"].T + params["2"]["bias"]


def make_line(key):
    return {"weight": jnp.zeros((1, 12)), "bias": jnp.zeros(1)}


def line(params, x):
    return x @ params["weight"].T + params["bias"]


def certain(outputs, targets):
    return jax.nn.softmax(outputs).max(1)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 53)
    return Dataset(x=rng.normal(size=(53, 12)) + np.eye(3, 12)[y], y=y)


def fit(model, data, work=WORK, seed=1, params=None):
    return model.fit(model.init(0) if params is None else params, data, work, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"momentum": 0.9},
        {"optimiser": "adam"},
        {"weight_decay": 0.1, "proximal": 0.5},
        {"correction": 0.5},
        {"mask": 0.0},
        {"epochs": None, "steps": 17},
        {"batch_size": None},
    ],
    ids=lambda more: "+".join(more) or "plain",
)
def test_jax_equals_the_numpy_reference(data, more):
    reference, model = MLPModel((12, 8, 3)), JaxModel(make, apply, cross_entropy)
    params = reference.init(0)
    terms = {"correction": lambda c: params * c, "mask": lambda c: params.map(lambda a: (a > c).astype(a.dtype))}
    work = WORK.with_(**{name: terms[name](one) if name in terms else one for name, one in more.items()})
    expected, found = fit(reference, data, work, params=params), fit(model, data, work, params=params)
    assert found.steps == expected.steps and found.params.shapes == expected.params.shapes
    for name in params:
        np.testing.assert_allclose(found.params[name], expected.params[name], atol=1e-5)
    assert value(found.metrics) == pytest.approx(value(expected.metrics), abs=1e-5)
    theirs = value(reference.evaluate(found.params, data))
    assert value(model.evaluate(found.params, data)) == pytest.approx(theirs, abs=1e-5)


def test_a_linear_model_equals_the_reference(data):
    data = Dataset(x=data["x"], y=data["x"][:, :1] * 2)
    found = fit(JaxModel(make_line, line, squared_error), data).params
    expected = fit(LinearModel(12), data).params
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    with pytest.raises(ConfigError, match=r"outputs have shape \(10, 1\), targets \(10,\)"):
        fit(JaxModel(make_line, line, squared_error), Dataset(x=data["x"], y=data["y"][:, 0]))


def test_fit_repeats_whatever_was_fitted_in_between(data):
    model = JaxModel(make, apply_dropout, cross_entropy)
    one = fit(model, data)
    fit(model, data.take(range(7)), seed=5)
    assert fit(model, data).params == one.params
    unshuffled = WORK.with_(shuffle=False)
    assert fit(model, data, unshuffled).params != fit(model, data, unshuffled, seed=2).params  # dropout's own draw
    assert model.evaluate(one.params, data) == model.evaluate(one.params, data)


def test_init_depends_on_the_seed_alone():
    model = JaxModel(make, apply, cross_entropy)
    assert model.init(1) == model.init(1) != model.init(2)
    assert model.init(1).shapes == model.shapes()


def test_clients_of_similar_size_share_a_program(data):
    model = JaxModel(make, apply, cross_entropy)
    for examples in (40, 50, 35 + 5):
        fit(model, data.take(range(examples)))
    assert model._loop._cache_size() == 1  # 40 and 50 rows, 12 and 15 steps: both padded to 64 and 16


def test_roles_hold_still_what_is_frozen(data):
    model = JaxModel(make, apply, cross_entropy, frozen=("0.*",), private=("2.bias",))
    assert model.roles() == {"0.bias": Role.FROZEN, "0.weight": Role.FROZEN, "2.bias": Role.PRIVATE}
    start = model.init(0)
    after = fit(model, data, params=start).params
    assert [name for name in start if (after[name] != start[name]).any()] == ["2.bias", "2.weight"]


def test_measures_are_added_up(data):
    model = JaxModel(make, apply, cross_entropy, measures={"certain": (certain, 1.0)})
    metrics = model.evaluate(model.init(0), data)
    assert 53 / 3 <= metrics["certain"][0] <= 53 and metrics["certain"][1] == 53
    assert 1 / 3 <= value(fit(model, data).metrics)["certain"] <= 1


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_refused_in_training_and_evaluation(data, label):
    model = JaxModel(make, apply, cross_entropy)
    wrong = Dataset(x=data["x"], y=np.where(np.arange(53) == 7, label, data["y"]))
    for use in (lambda: model.fit(model.init(0), wrong, WORK, np.random.default_rng(0)),
                lambda: model.evaluate(model.init(0), wrong)):  # fmt: skip
        with pytest.raises(DataError, match=f"'y' has classes {min(label, 0)} to {max(label, 2)}, but .* knows 0 to 2"):
            use()


def test_finish_gives_the_pytree(data):
    model = JaxModel(make, apply, cross_entropy)
    params = fit(model, data).params
    tree = model.finish(params)
    assert jax.tree_util.tree_structure(tree) == jax.tree_util.tree_structure(make(jax.random.key(0)))
    np.testing.assert_array_equal(tree["2"]["weight"], params["2.weight"])
    with pytest.raises(TensorMismatch):
        model.finish(Tensors({"w": [1.0]}))


def test_a_model_survives_its_canonical_form():
    model = JaxModel(make, apply, cross_entropy, frozen=["0.*"])
    assert rebuild(canonical(model)) == model
    with pytest.raises(ConfigError, match="loss='mse': give a function"):
        JaxModel(make, apply, "mse")
