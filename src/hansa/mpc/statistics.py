"""Statistics of secret columns, and measures of secret predictions: everything stays secret until it is revealed.

    x.mean(0), x.var(0), x.amax(0)           as of any tensor
    Scaling.min_max(x), Scaling.mean(x)      scaling of features, also from the owners' summaries alone
    median(x), correlation(x)
    auc, ks, precision_recall                of scores against labels 0 and 1

Quotients are exact to 2^−16 or so whatever the size of the numbers: both sides are scaled before they are divided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hansa.core.errors import ConfigError
from hansa.mpc import functions
from hansa.mpc.fixed import Fixed
from hansa.mpc.secret import SecretTensor


@dataclass(frozen=True)
class Scaling:
    """Features as (x − centre) / spread.

    Args:
      centre: secret, one for each column.
      spread: secret, positive; a column whose spread is 0 becomes 0.
    """

    centre: SecretTensor
    spread: SecretTensor

    @classmethod
    def min_max(cls, x: SecretTensor) -> "Scaling":
        """To [0, 1], by the smallest and the largest of each column of `x`, shape (rows, columns)."""
        low, high = _ends(x)
        return cls(low, _tensor(high - low))

    @classmethod
    def mean(cls, x: SecretTensor) -> "Scaling":
        """By the mean of each column and the distance of its ends: mean normalisation."""
        low, high = _ends(x)
        return cls(_tensor(x.mean(0)), _tensor(high - low))

    @classmethod
    def pooled(cls, minima: SecretTensor, maxima: SecretTensor, means: SecretTensor, rows: Sequence[int]) -> "Scaling":
        """Mean normalisation by all owners' rows together, from three numbers of each owner and column.

        Args:
          minima: the smallest of each column, shape (owners, columns).
          maxima: the largest.
          means: the means.
          rows: how many each owner has, which is public.
        """
        if len(rows) != len(means) or min(rows, default=0) < 1:
            raise ConfigError(f"rows={list(rows)} for {len(means)} owners: give each its count of rows, at least 1.")
        share = torch.tensor(rows, dtype=torch.float64) / sum(rows)
        low, high = -(-minima).amax(0), maxima.amax(0)
        return cls(_tensor((means * share[:, None]).sum(0)), _tensor(high - low))

    def apply(self, x: SecretTensor) -> SecretTensor:
        """The scaled columns of `x`, shape (rows, columns), within 2^−15."""
        distance = x - self.centre
        return SecretTensor(functions.quotient(_tensor(distance).value, self.spread.value))


def median(x: SecretTensor, dim: int = 0) -> SecretTensor:
    """The middle number along a dimension, or the mean of both middle ones, as NumPy has it."""
    ordered, half = x.sort(dim)[0], x.shape[dim] // 2
    if x.shape[dim] % 2:
        return _tensor(ordered.select(dim, half))
    return _tensor((ordered.select(dim, half - 1) + ordered.select(dim, half)) * 0.5)


def correlation(x: SecretTensor) -> SecretTensor:
    """Pearson's correlation of each two columns of `x`, shape (rows, columns), within 1e-3; 0 for a constant one."""
    scaled, rows = Scaling.mean(x).apply(x), x.shape[0]
    spread = ((scaled * scaled).sum(0) * (1 / rows)).value.rehomed(26)
    standard = scaled * SecretTensor(functions.rsqrt(spread))
    product = standard.t() @ standard * (1 / rows)
    # The diagonal says what the roots were off by: one step of Newton's takes it out of all.
    right = 1.5 - product.diagonal() * 0.5
    return _tensor(product * right * right[:, None])


def auc(scores: SecretTensor, labels: SecretTensor) -> SecretTensor:
    """The area under the ROC curve, ties counted half, within 1e-4; 0 if all labels are the same.

    Args:
      scores: shape (rows,); larger means likelier 1.
      labels: 0 or 1, of any dtype.
    """
    code, label = _codes(scores), _labels(scores, labels)
    # Ties are sorted once with the 1s last and once with them first: the mean of both counts them half.
    keys = code.join([code], torch.stack).map(lambda part: part * 2) + label.join([1 - label], torch.stack)
    _, ordered = functions.sort(keys, carried=label.join([label], torch.stack))
    ranks = torch.arange(1, scores.numel() + 1)
    positives = _sum(label)
    won = _sum(ordered * ranks) - (positives * (positives + 1))  # twice Mann and Whitney's U, of both orders
    return SecretTensor(functions.quotient(won, _both(positives, label) * 2))


def ks(scores: SecretTensor, labels: SecretTensor) -> SecretTensor:
    """Kolmogorov and Smirnov's statistic, the largest distance between the distributions of the scores of both labels.

    Args:
      scores: shape (rows,).
      labels: 0 or 1, of any dtype.
    """
    code, label = _codes(scores), _labels(scores, labels)
    ordered, carried = functions.sort(code, carried=label)
    last = (ordered.map(lambda part: part[:-1]) - ordered.map(lambda part: part[1:])).negative()
    last = last.join([Fixed.constant(code.engine, torch.ones(1, dtype=torch.int64))], torch.cat)
    positives = _sum(label)
    seen = carried.map(lambda part: part.cumsum(0))
    counted = torch.arange(1, scores.numel() + 1)
    # P_i/P − N_i/N = (P_i·N − N_i·P) / (P·N), with N_i = i − P_i: P_i·n − i·P above the line
    distance = (seen * scores.numel() - positives * counted) * last
    size = distance * (1 - distance.negative() * 2)
    largest, _ = functions.maximum(size)
    return SecretTensor(functions.quotient(largest, _both(positives, label)))


def precision_recall(
    scores: SecretTensor, labels: SecretTensor, threshold: float = 0.5
) -> tuple[SecretTensor, SecretTensor, SecretTensor]:
    """Precision, recall and their harmonic mean F1, within 1e-4; 0 where nothing is to be divided by.

    Args:
      scores: any shape.
      labels: 0 or 1, of any dtype.
      threshold: public; scores of at least this are taken for 1.
    """
    label, taken = _labels(scores, labels), _flat(_tensor(scores.ge(threshold)))
    hits, positives, found = _sum(label * taken), _sum(label), _sum(taken)
    above = hits.join([hits, hits * 2], torch.stack)
    ratios = functions.quotient(above, found.join([positives, found + positives], torch.stack))
    return tuple(SecretTensor(ratios.map(lambda part, at=at: part[at])) for at in range(3))  # type: ignore[misc, return-value]


def _ends(x: SecretTensor) -> tuple[SecretTensor, SecretTensor]:
    """The smallest and the largest of each column, in one tournament."""
    both = torch.stack([-x, x]).amax(1)
    return _tensor(-both[0]), _tensor(both[1])


def _codes(scores: SecretTensor) -> Fixed:
    """Scores as integers in the same order."""
    if scores.dim() != 1:
        raise ConfigError(f"scores of shape {tuple(scores.shape)}: give one for each row, shape (rows,).")
    value = scores.value
    share = value.share()
    return Fixed(value.engine, share, 0, 0)


def _labels(scores: SecretTensor, labels: SecretTensor) -> Fixed:
    """Labels as integers."""
    if labels.numel() != scores.numel():
        raise ConfigError(f"{labels.numel()} labels for {scores.numel()} scores: give one each.")
    return _flat(_tensor(labels.gt(0.5)) if labels.is_floating_point() else labels)


def _flat(x: SecretTensor) -> Fixed:
    return x.value.map(lambda part: part.reshape(-1))


def _sum(x: Fixed) -> Fixed:
    return x.map(lambda part: part.sum())


def _both(positives: Fixed, label: Fixed) -> Fixed:
    """How many pairs of a 1 and a 0 there are."""
    pairs: Fixed = positives * (-positives + label.shape[0])
    return pairs


def _tensor(x: torch.Tensor) -> SecretTensor:
    assert isinstance(x, SecretTensor)
    return x
