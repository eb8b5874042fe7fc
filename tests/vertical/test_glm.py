"""Generalised linear models on shares, against the same by plain NumPy and scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.metrics import roc_auc_score

from hansa.core.errors import ConfigError, DataError
from hansa.mpc import local
from hansa.mpc.files import save_shares
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session
from hansa.vertical import AlignedTable, FittedGlm, Glm


def standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def fit(glm: Glm, x: np.ndarray, y: Any, protocol: str = "aby3", cut: int | None = None) -> list[tuple[FittedGlm, Any]]:
    """Each party's part and what it predicts: the first owns the columns before `cut` and the labels."""
    cut = x.shape[1] if protocol == "plain" else cut or x.shape[1] // 2

    def program(session: Session) -> tuple[FittedGlm, Any]:
        table, label = None, None
        if session.me == "party-0":
            table = AlignedTable(session.me, {**{f"a{at}": x[:, at] for at in range(cut)}, "y": y})
            label = "y"
        elif session.me == "party-1":
            table = AlignedTable(session.me, {f"b{at}": x[:, at] for at in range(cut, x.shape[1])})
        fitted = glm.fit(session, table, label)
        return fitted, fitted.predict(session, table)

    return local(program, protocol)


def together(parts: list[tuple[FittedGlm, Any]]) -> np.ndarray:
    """All coefficients on standardised columns."""
    return np.concatenate([part.coefficients for part, _ in parts if part.names])


@pytest.fixture(scope="module")
def cancer() -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    return data.data[:, :8], data.target


def test_newton_on_shares_finds_the_logistic_fit_of_the_joined_table(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = cancer
    parts = fit(Glm(solver="newton", epochs=6, l2=0.02, errors=True), x, y)
    plain = LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-8).fit(standard(x), y)
    np.testing.assert_allclose(together(parts)[:, 0], plain.coef_[0], atol=0.01)
    np.testing.assert_allclose(parts[0][0].intercept, plain.intercept_, atol=0.01)
    expected = plain.predict_proba(standard(x))[:, 1]
    np.testing.assert_allclose(parts[0][1], expected, atol=6e-3)
    assert abs(roc_auc_score(y, parts[0][1]) - roc_auc_score(y, expected)) < 0.002
    # Standard errors by Fisher's information of the plain fit.
    design = np.column_stack([np.ones(len(x)), standard(x)])
    information = (design.T * (expected * (1 - expected))) @ design + 0.02 * len(x) * np.diag([0] + [1] * 8)
    errors = np.sqrt(np.diag(np.linalg.inv(information)))[1:] / x.std(0)
    ours = np.concatenate([parts[0][0].standard_errors, parts[1][0].standard_errors])
    np.testing.assert_allclose(ours, errors, rtol=0.05)
    assert (parts[0][0].p_values < 0.01).any()


def test_an_owner_holds_its_own_coefficients_and_a_helper_none(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    labelled, other, helper = [part for part, _ in fit(Glm(solver="newton", epochs=1), *cancer, cut=3)]
    assert labelled.names == ("a0", "a1", "a2") and labelled.coefficients.shape == (3, 1)
    assert other.names == ("b3", "b4", "b5", "b6", "b7") and other.intercept is None and not other.classes
    assert helper.names == () and helper.coefficients.shape == (0, 1) and helper.intercept is None
    assert labelled.everyone is None and "intercept" in labelled.summary() and "intercept" not in other.summary()


def test_mini_batches_come_near_the_plain_fit(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = cancer
    parts = fit(Glm(epochs=15, batch_size=128, lr=0.5, momentum=0.5, l2=0.01), x, y, "plain")
    plain = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8).fit(standard(x), y).predict_proba(standard(x))[:, 1]
    assert abs(roc_auc_score(y, parts[0][1]) - roc_auc_score(y, plain)) < 0.002


def test_a_strong_l1_leaves_few_coefficients(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    weak, strong = (together(fit(Glm(epochs=6, batch_size=256, l1=l1), *cancer, "plain"))[:, 0] for l1 in (0.001, 0.15))
    assert (np.abs(strong) < 1e-3).sum() > (np.abs(weak) < 1e-3).sum() and np.abs(strong).max() > 0.05


def test_linear_regression_is_least_squares_in_one_step() -> None:
    data = load_diabetes()
    parts = fit(Glm(family="linear", solver="newton", epochs=2, l2=0.001, errors=True), data.data, data.target / 100)
    x, y, n = standard(data.data), data.target / 100, len(data.data)
    design = np.column_stack([np.ones(n), x])
    ridge = np.diag([0.0] + [0.001 * n] * x.shape[1])
    beta = np.linalg.solve(design.T @ design + ridge, design.T @ y)
    np.testing.assert_allclose(together(parts)[:, 0], beta[1:], atol=0.02)
    np.testing.assert_allclose(parts[0][1], design @ beta, atol=0.01)
    sigma = ((y - design @ beta) ** 2).sum() / (n - 11)
    errors = np.sqrt(sigma * np.diag(np.linalg.inv(design.T @ design + ridge)))[1:] / data.data.std(0)
    ours = np.concatenate([parts[0][0].standard_errors, parts[1][0].standard_errors])
    np.testing.assert_allclose(ours, errors, rtol=0.15)


def test_poisson_regression_predicts_counts() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 4))
    y = rng.poisson(np.exp(0.4 + x @ np.array([0.5, -0.3, 0.0, 0.2])))
    parts = fit(Glm(family="poisson", solver="newton", epochs=6), x, y)
    plain = PoissonRegressor(alpha=0, tol=1e-8).fit(standard(x), y)
    np.testing.assert_allclose(together(parts)[:, 0], plain.coef_, atol=0.01)


@pytest.mark.parametrize("solver", ["newton", "sgd"])
def test_multinomial_models_tell_classes_apart(solver: str) -> None:
    data = load_wine()
    settings = {"newton": {"epochs": 8}, "sgd": {"epochs": 15, "batch_size": 64}}[solver]
    parts = fit(Glm(family="multinomial", solver=solver, l2=0.01, **settings), data.data[:, :6], data.target)  # type: ignore[arg-type]
    fitted, predicted = parts[0]
    plain = LogisticRegression(C=1 / (0.01 * len(data.data))).fit(standard(data.data[:, :6]), data.target)
    assert fitted.classes == (0.0, 1.0, 2.0) and predicted.shape == (178, 3)
    ours = (predicted.argmax(1) == data.target).mean()
    assert ours >= plain.score(standard(data.data[:, :6]), data.target) - 0.03


def test_errors_of_a_multinomial_model_are_those_of_fishers_information() -> None:
    """On the space where coefficients sum to 0 over the classes, whose pseudo-inverse the plain way takes."""
    data = load_wine()
    x, y, l2 = data.data[:, [0, 6, 9]], data.target, 0.02
    parts = fit(Glm(family="multinomial", solver="newton", epochs=60, l2=l2, errors=True), x, y)
    design = np.column_stack([np.ones(len(x)), standard(x)])
    plain = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=1000).fit(standard(x), y)
    np.testing.assert_allclose(together(parts), plain.coef_.T, atol=0.02)
    p = plain.predict_proba(standard(x))
    d, classes = design.shape[1], 3
    information = np.zeros((classes * d, classes * d))
    for row, mean in zip(design, p, strict=True):
        information += np.kron(np.diag(mean) - np.outer(mean, mean), np.outer(row, row))
    information += np.kron(np.eye(classes), np.diag([0.0] + [l2 * len(x)] * (d - 1)))
    apart = np.kron(np.eye(classes) - 1 / classes, np.eye(d))
    errors = np.sqrt(np.diag(np.linalg.pinv(apart @ information @ apart, rcond=1e-10))).reshape(classes, d).T[1:]
    ours = np.concatenate([part.standard_errors for part, _ in parts if part.names])
    np.testing.assert_allclose(ours, errors / x.std(0)[:, None], rtol=0.05)
    first = parts[0][0]
    assert first.p_values.shape == (1, 3) and (first.p_values >= 0).all() and (first.p_values <= 1).all()
    assert len(first.summary().splitlines()) == 1 + 3 + 1


def test_class_weights_are_those_of_the_plain_fit(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = cancer
    text = np.array(["ill", "well"], object)[y]
    parts = fit(Glm(solver="newton", epochs=6, l2=0.05, class_weight={"ill": 4.0, "well": 1.0}), x, text, "plain")
    weights = np.where(y == 0, 4.0, 1.0)
    plain = LogisticRegression(C=1 / (0.05 * len(x)), tol=1e-8).fit(standard(x), y, sample_weight=weights)
    np.testing.assert_allclose(together(parts)[:, 0], plain.coef_[0], atol=0.01)
    balanced = fit(Glm(solver="newton", epochs=2, class_weight="balanced"), x, text, "plain")[0][0]
    assert balanced.classes == ("ill", "well")


def test_coefficients_are_opened_to_all_only_when_that_is_said(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    parts = [part for part, _ in fit(Glm(solver="newton", epochs=1, open_to="all"), *cancer)]
    assert all(part.everyone is not None and set(part.everyone) == {"party-0", "party-1"} for part in parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": [1.0, 2.0, None]}, r"\['a'\] of 'party-0' have missing"),
        ({"a": [1.0, 1.0, 1.0]}, r"\['a'\] of 'party-0' are constant"),
        ({"a": ["x", "y", "z"]}, r"\['a'\] of 'party-0' are text"),
        ({"y": [0.0, 1.0, 2.0]}, "has 3 classes, and a logistic model needs two classes"),
        ({"y": ["no", "yes", None]}, "missing values"),
    ],
)
def test_data_that_cannot_be_fitted_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    columns = {"a": [1.0, 2.0, 3.0], "y": [0.0, 1.0, 1.0], **change}
    with pytest.raises(DataError, match=message):
        local(lambda session: Glm().fit(session, AlignedTable(session.me, columns), "y"), "plain")


def test_parties_that_do_not_fit_together_are_refused_by_all() -> None:
    def program(session: Session, label: dict[str, str], alignments: dict[str, bytes]) -> None:
        if session.me == "party-2":
            return Glm().fit(session, None)
        columns = {"a": [1.0, 2.0, 3.0], "y": [0.0, 1.0, 1.0]}
        alignment = alignments.get(session.me, bytes(32))
        return Glm().fit(session, AlignedTable(session.me, columns, alignment), label.get(session.me))

    with pytest.raises(ConfigError, match="nobody gave a label"):
        local(lambda session: program(session, {}, {}), "aby3")
    with pytest.raises(ConfigError, match=r"\['party-0', 'party-1'\] all gave a label"):
        local(lambda session: program(session, {"party-0": "y", "party-1": "y"}, {}), "aby3")
    with pytest.raises(ConfigError, match="of different alignments: align them again"):
        local(lambda session: program(session, {"party-0": "y"}, {"party-1": bytes([1]) * 32}), "aby3")


def test_owners_that_do_not_compute_take_part_by_files_of_shares(
    cancer: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    x, y = standard(cancer[0][:, :6]), cancer[1]
    for name, at in (("clinic", 2), ("insurer", 4)):
        save_shares({"table": x[:, at : at + 2]}, str(tmp_path / name), [f"party-{place}" for place in range(3)])
    glm = Glm(solver="newton", epochs=5, l2=0.02)

    def program(session: Session) -> tuple[FittedGlm, Any]:
        table = None
        if session.me == "party-0":
            table = AlignedTable(session.me, {"a": x[:, 0], "b": x[:, 1], "y": y})
        others = {name: session.load(str(tmp_path / name)) for name in ("clinic", "insurer")}
        fitted = glm.fit(session, table, "y" if table is not None else None, others=others)
        return fitted, fitted.predict(session, table, others=others)

    fitted, predicted = local(program)[0]
    plain = LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-8).fit(x, y)
    np.testing.assert_allclose(predicted, plain.predict_proba(x)[:, 1], atol=6e-3)
    assert set(fitted.others) == {"clinic", "insurer"} and isinstance(fitted.others["clinic"], SecretTensor)


class Lost(Exception):
    """A party goes."""


@pytest.mark.parametrize("settings", [{"momentum": 0.5, "batch_size": 128}, {"solver": "newton", "l2": 0.01}])
def test_a_fit_that_lost_a_party_goes_on_from_the_last_epoch(
    cancer: tuple[np.ndarray, np.ndarray], tmp_path: Path, settings: dict[str, Any]
) -> None:
    x, y = cancer[0][:, :4], cancer[1]
    glm, seen = Glm(epochs=4, **settings), list[int]()

    def program(session: Session, last: int) -> FittedGlm:
        def observe(epoch: int) -> None:
            if session.me == "party-2":
                seen.append(epoch)
                if epoch == last:
                    raise Lost

        table = None
        if session.me != "party-2":
            columns = {f"{session.me}-{at}": x[:, at] for at in ((0, 1) if session.me == "party-0" else (2, 3))}
            table = AlignedTable(session.me, columns | ({"y": y} if session.me == "party-0" else {}))
        label = "y" if session.me == "party-0" else None
        return glm.fit(session, table, label, keep=tmp_path / session.me, observe=observe)

    with pytest.raises(Lost):
        local(lambda session: program(session, 1))
    again = local(lambda session: program(session, -1))
    assert seen == [0, 1, 2, 3], "the second run went on where the first one ended"
    assert not list(tmp_path.rglob("epoch-*"))
    whole = local(lambda session: program(session, -1))
    for ours, theirs in zip(again, whole, strict=True):
        np.testing.assert_allclose(ours.coefficients, theirs.coefficients, atol=2e-3)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="take solver='sgd' for l1"):
        Glm(solver="newton", l1=0.1)
    with pytest.raises(ConfigError, match="a linear model has no classes"):
        Glm(family="linear", class_weight="balanced")
    with pytest.raises(ConfigError, match="choose one of linear, logistic"):
        Glm(family="probit")
