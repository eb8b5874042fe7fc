"""scikit-learn's partial_fit estimators as models."""

import functools

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression, Perceptron, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor

from hansa.adapters.sklearn import SklearnModel
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, DataError, TensorMismatch
from hansa.core.job import canonical
from hansa.core.model import LocalWork, value
from hansa.core.tensors import Tensors
from hansa.runtimes.forms import rebuild

LOGISTIC = functools.partial(SGDClassifier, loss="log_loss", alpha=0.0)
CLASSIFIERS = [LOGISTIC, SGDClassifier, Perceptron, functools.partial(MLPClassifier, hidden_layer_sizes=(7,))]
REGRESSORS = [SGDRegressor, functools.partial(MLPRegressor, hidden_layer_sizes=(7,))]
WORK = LocalWork(lr=0.05, epochs=10, batch_size=10)


@pytest.fixture
def iris():
    x, y = load_iris(return_X_y=True)
    return Dataset(x=(x - x.mean(0)) / x.std(0), y=y)


def model_of(estimator):
    return SklearnModel(estimator, features=4, classes=None if estimator in REGRESSORS else 3)


def fit(model, data, work=WORK, seed=1):
    return model.fit(model.init(0), data, work, np.random.default_rng(seed))


@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS)
def test_an_estimator_learns_and_repeats(iris, estimator):
    model = model_of(estimator)
    start = model.init(0)
    assert start.shapes == model.shapes() and start == model.init(0)
    one, two, other = fit(model, iris), fit(model, iris), fit(model, iris, seed=2)
    assert one.params == two.params != other.params and one.steps == 150
    metrics = value(model.evaluate(one.params, iris))
    assert metrics.keys() == model.metrics.keys()
    assert metrics["accuracy"] > 0.65 if "accuracy" in metrics else metrics["loss"] < 0.2


def test_one_example_at_a_time_is_plain_gradient_descent():
    # Logistic loss at w=b=0, class 1 of {0, 1}: the gradient is (½ − 1)·(x, 1).
    model = SklearnModel(LOGISTIC, features=2, classes=2)
    fit = model.fit(
        model.init(0), Dataset(x=[[2.0, -4.0]], y=[1]), LocalWork(lr=0.1, steps=1), np.random.default_rng(0)
    )
    np.testing.assert_allclose(fit.params["coef"], [[0.1, -0.2]], atol=1e-12)
    np.testing.assert_allclose(fit.params["intercept"], [0.05], atol=1e-12)


def test_a_perceptron_of_layers_takes_the_gradient_of_the_batch(iris):
    """Against scikit-learn's own loop, whose momentum is the one of LocalWork."""
    model = model_of(CLASSIFIERS[3])
    start = model.init(3)
    work = LocalWork(lr=0.1, steps=3, momentum=0.5, shuffle=False)
    found = model.fit(start, iris, work, np.random.default_rng(0)).params
    own = model.finish(start).set_params(
        solver="sgd", learning_rate_init=0.1, momentum=0.5, nesterovs_momentum=False, batch_size=150, shuffle=False
    )
    for _ in range(3):
        own.partial_fit(iris["x"], iris["y"])
    for i in range(2):
        np.testing.assert_allclose(found[f"coefs.{i}"], own.coefs_[i], atol=1e-12)


def test_finish_gives_the_estimator_fitted(iris):
    model = model_of(LOGISTIC)
    params = fit(model, iris).params
    estimator = model.finish(params)
    assert isinstance(estimator, SGDClassifier)
    assert (estimator.predict(iris["x"]) == iris["y"]).mean() == value(model.evaluate(params, iris))["accuracy"]
    np.testing.assert_array_equal(estimator.coef_, params["coef"])


@pytest.mark.parametrize(
    "more",
    [{"proximal": 0.1}, {"weight_decay": 0.1}, {"momentum": 0.5}, {"optimiser": "adam"}],
    ids=lambda more: next(iter(more)),
)
def test_what_an_estimator_cannot_do_is_refused(iris, more):
    with pytest.raises(ConfigError, match=r"SGDClassifier cannot do (optimiser='adam'|\w+), which the LocalWork asks"):
        fit(model_of(LOGISTIC), iris, WORK.with_(**more))


def test_correction_and_mask_are_refused(iris):
    model = model_of(LOGISTIC)
    for name in ("correction", "mask"):
        with pytest.raises(ConfigError, match=f"cannot do {name}"):
            fit(model, iris, WORK.with_(**{name: model.init(0)}))


def test_estimators_without_partial_fit_or_coefficients_are_refused():
    with pytest.raises(ConfigError, match="LogisticRegression has no partial_fit"):
        SklearnModel(LogisticRegression, features=4, classes=3)
    with pytest.raises(ConfigError, match="GaussianNB has no coefficients to average"):
        SklearnModel(functools.partial(GaussianNB), features=4, classes=3)
    with pytest.raises(ConfigError, match="classes=None"):
        SklearnModel(SGDClassifier, features=4)
    with pytest.raises(ConfigError, match="a callable that returns a fresh estimator"):
        SklearnModel(SGDClassifier(), features=4, classes=3)


def test_data_and_parameters_that_do_not_fit_are_named(iris):
    model = model_of(LOGISTIC)
    with pytest.raises(DataError, match="has 5 numbers, but features=4"):
        model.evaluate(model.init(0), Dataset(x=np.zeros((2, 5)), y=[0, 1]))
    with pytest.raises(DataError, match="integer classes 0 to 2"):
        model.evaluate(model.init(0), Dataset(x=np.zeros((2, 4)), y=[0, 3]))
    with pytest.raises(TensorMismatch):
        model.finish(Tensors({"coef": np.zeros((3, 4))}))


def test_a_model_survives_its_canonical_form():
    model = model_of(LOGISTIC)
    again = rebuild(canonical(model))
    assert again.init(0) == model.init(0) and again.metrics == model.metrics
