"""Statistics of secrets against NumPy's and scikit-learn's of the values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hansa.core.errors import ConfigError
from hansa.mpc import Session, local
from hansa.mpc.statistics import Scaling, auc, correlation, ks, median, precision_recall

metrics = pytest.importorskip("sklearn.metrics")
scipy_stats = pytest.importorskip("scipy.stats")

RNG = np.random.default_rng(3)
# Columns of very different size, which fixed point does not like: years, incomes, rates, and a constant.
TABLE = np.stack(
    [RNG.uniform(18, 90, 61), RNG.lognormal(10, 0.7, 61), RNG.normal(0, 0.02, 61), np.full(61, 3.0)], 1
).astype(np.float32)
LABELS = (RNG.random(61) < 0.3).astype(np.int64)
SCORES = np.round(np.clip(RNG.normal(0.4 + 0.2 * LABELS, 0.2), 0, 1), 1).astype(np.float32)  # rounded: with many ties

both = pytest.mark.parametrize("protocol", ["plain", "aby3"])


def opened(function: Callable[..., Any], *given: np.ndarray, protocol: str) -> Any:
    """What a function of secrets reveals, as NumPy arrays."""

    def program(session: Session) -> Any:
        return session.reveal(function(*(session.share(torch.from_numpy(each), session.names[0]) for each in given)))

    found = local(program, protocol)[-1]
    return [each.numpy() for each in found] if isinstance(found, list) else found.numpy()


@both
def test_mean_variance_and_ends_are_numpys(protocol: str) -> None:
    mean, variance, low, high = opened(
        lambda x: (x.mean(0), x.var(0, correction=0), -(-x).amax(0), x.amax(0)), TABLE, protocol=protocol
    )
    assert np.allclose(mean, TABLE.mean(0), rtol=1e-4, atol=1e-4)
    assert np.allclose(variance[[0, 2, 3]], TABLE.var(0)[[0, 2, 3]], rtol=1e-3, atol=1e-4)
    assert np.allclose(low, TABLE.min(0), rtol=1e-6, atol=1e-4) and np.allclose(
        high, TABLE.max(0), rtol=1e-6, atol=1e-4
    )


@both
def test_scaling_is_that_of_the_pooled_table(protocol: str) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    by_ends, by_mean = opened(
        lambda x: (Scaling.min_max(x).apply(x), Scaling.mean(x).apply(x)), TABLE, protocol=protocol
    )
    varied = TABLE[:, :3]
    wanted = (varied - varied.mean(0)) / (varied.max(0) - varied.min(0))
    for off in (by_ends - preprocessing.MinMaxScaler().fit_transform(TABLE), by_mean[:, :3] - wanted):
        assert np.abs(off[:, :2]).max() < 1e-4
        assert np.abs(off[:, 2]).max() < 5e-4  # numbers of 0.02 were shared with 10 bits
    assert np.abs(by_mean[:, 3]).max() < 1e-4


@both
def test_scaling_from_each_owners_summary_is_that_of_all_rows(protocol: str) -> None:
    parts = [TABLE[:10, :2], TABLE[10:40, :2], TABLE[40:, :2]]
    summaries = [np.stack([function(part) for part in parts]) for function in (
        lambda t: t.min(0), lambda t: t.max(0), lambda t: t.mean(0))]  # fmt: skip

    def pooled(low: Any, high: Any, mean: Any) -> Any:
        scaling = Scaling.pooled(low, high, mean, [10, 30, 21])
        return scaling.centre, scaling.spread

    centre, spread = opened(pooled, *summaries, protocol=protocol)
    assert np.allclose(centre, TABLE[:, :2].mean(0), rtol=1e-4)
    assert np.allclose(spread, np.ptp(TABLE[:, :2], axis=0), rtol=1e-6)


def test_scaling_needs_a_count_of_each_owner() -> None:
    with pytest.raises(ConfigError, match=r"rows=\[3\] for 2 owners"):
        opened(lambda x: Scaling.pooled(x, x, x, [3]).centre, TABLE[:2], protocol="plain")


@both
@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_median_is_numpys_of_odd_and_even_counts(protocol: str, rows: int) -> None:
    columns, flat = opened(lambda x: (median(x), median(x[0], 0)), TABLE[:rows], protocol=protocol)
    assert np.allclose(columns, np.median(TABLE[:rows], axis=0), rtol=1e-5, atol=1e-4)
    assert np.allclose(flat, np.median(TABLE[0]), rtol=1e-5, atol=1e-4)


@both
def test_correlation_is_numpys(protocol: str) -> None:
    mixed = np.stack([TABLE[:, 0], TABLE[:, 1] + 500 * TABLE[:, 0], -TABLE[:, 0], 50 * TABLE[:, 2], TABLE[:, 3]], 1)
    found = opened(correlation, mixed.astype(np.float32), protocol=protocol)
    assert np.abs(found[:4, :4] - np.corrcoef(mixed[:, :4].T)).max() < 1e-3
    assert np.abs(found[4]).max() < 1e-3


@both
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
def test_auc_ks_precision_and_recall_are_sklearns(protocol: str, dtype: Any) -> None:
    area, distance, precision, recall, f1 = opened(
        lambda s, y: (auc(s, y), ks(s, y), *precision_recall(s, y, 0.55)), SCORES, LABELS.astype(dtype),
        protocol=protocol,
    )  # fmt: skip
    taken = SCORES >= 0.55
    assert abs(area - metrics.roc_auc_score(LABELS, SCORES)) < 1e-4
    assert abs(distance - scipy_stats.ks_2samp(SCORES[LABELS == 1], SCORES[LABELS == 0]).statistic) < 1e-4
    assert abs(precision - metrics.precision_score(LABELS, taken)) < 1e-4
    assert abs(recall - metrics.recall_score(LABELS, taken)) < 1e-4
    assert abs(f1 - metrics.f1_score(LABELS, taken)) < 1e-4


def test_measures_of_many_rows_and_few_positives() -> None:
    rng = np.random.default_rng(5)
    labels = (rng.random(3000) < 0.01).astype(np.int64)
    scores = rng.normal(labels * 1.0, 1).astype(np.float32)
    area, distance = opened(lambda s, y: (auc(s, y), ks(s, y)), scores, labels, protocol="plain")
    assert abs(area - metrics.roc_auc_score(labels, scores)) < 1e-4
    assert abs(distance - scipy_stats.ks_2samp(scores[labels == 1], scores[labels == 0]).statistic) < 1e-4


def test_labels_of_one_kind_and_no_prediction_give_zero() -> None:
    area, distance, precision, *_ = opened(
        lambda s, y: (auc(s, y), ks(s, y), *precision_recall(s, y, 2.0)), SCORES, LABELS * 0, protocol="plain"
    )
    assert area == 0 and distance == 0 and precision == 0


@pytest.mark.parametrize(("protocol", "owners"), [("two_party", 2), ("aby3", 2), ("aby3", 3), ("pond", 3)])
def test_what_several_owners_have_together(protocol: str, owners: int) -> None:
    """Sum, product, comparison, maximum, variance and median over the rows of two and of three owners."""
    parts = [torch.from_numpy(part.copy()) for part in np.array_split(TABLE[:21, :1], owners)]
    size = min(map(len, parts))

    def program(session: Session) -> Any:
        given = [session.share(part, name) for part, name in zip(parts, session.names, strict=False)]
        x, (a, b) = torch.cat(given), (each[:size] for each in given[:2])
        return session.reveal([a + b, a * b, a > b, x.max(), x.var(0), median(x)])

    total, product, greater, largest, variance, middle = local(program, protocol)[0]
    whole, (a, b) = torch.cat(parts), (part[:size] for part in parts[:2])
    assert torch.allclose(total, a + b, atol=1e-4) and torch.allclose(product, a * b, rtol=1e-5, atol=1e-2)
    assert torch.equal(greater, a > b) and torch.allclose(largest, whole.max(), atol=1e-4)
    assert torch.allclose(variance, whole.var(0), rtol=1e-4)
    assert torch.allclose(middle, torch.from_numpy(np.median(whole.numpy(), axis=0)), atol=1e-4)


def test_scores_and_labels_that_do_not_match_are_refused() -> None:
    with pytest.raises(ConfigError, match="60 labels for 61 scores"):
        opened(auc, SCORES, LABELS[1:], protocol="plain")
    with pytest.raises(ConfigError, match=r"scores of shape \(1, 61\)"):
        opened(auc, SCORES[None], LABELS, protocol="plain")
