"""Partitioners that make clients differ in their labels.

Each decides, label by label, how many of its rows go to each client; `_deal` then deals random rows in those numbers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError
from hansa.data.labels import labels
from hansa.data.partitioners.size import SizeRule, Sizes, apportion, positive, whole_number
from hansa.data.population import Cut, Partitioner, by_owner, client_count


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Each label's rows are shared out in proportions drawn from a symmetric Dirichlet distribution.

        for each label c:  p_c ~ Dir_clients(alpha),  client k gets the share p_ck of the rows with label c

    | alpha | what clients look like                       |
    |-------|----------------------------------------------|
    | 0.1   | one or two labels each, very unequal sizes   |
    | 0.5   | a few labels dominate (NIID-Bench)           |
    | 100   | nearly IID                                   |

    A client left with fewer than `min_examples` is given random rows of clients that have more. (Published code draws
    again until all have enough, which never ends with many clients.) Sizes vary; for given sizes see `InnerDirichlet`.

    Source: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022; Li et al. 2022, https://arxiv.org/abs/2102.02079
    """

    alpha: float
    _: KW_ONLY
    label: str = "y"
    min_examples: int = 1

    def __post_init__(self) -> None:
        positive(alpha=self.alpha)
        whole_number(min_examples=self.min_examples)

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        _, codes = labels(dataset, self.label)
        clients = client_count(dataset, clients, self.min_examples)
        shares = self._shares(np.bincount(codes), clients, rng)
        owner = _top_up(_deal(codes, shares, rng), clients, self.min_examples, rng)
        return by_owner(owner, clients)

    def _shares(self, totals: np.ndarray, clients: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        for total in totals:
            shares = rng.dirichlet(np.full(clients, self.alpha))
            bounds = np.round(np.cumsum(shares) * total).astype(np.int64)
            bounds[-1] = total
            yield np.diff(bounds, prepend=0)


@dataclass(frozen=True)
class InnerDirichlet(Partitioner):
    """Each client draws its own mix of labels from a Dirichlet distribution, and fills its given size by it.

        for each client k:  q_k ~ Dir_labels(alpha),  n_k rows with labels drawn from q_k

    When a label runs out, what was still wanted of it is drawn anew from the client's other labels. (The authors' code
    draws row by row; here all clients draw at once, and chance decides who gets the last rows of a label.)

    Args:
      alpha: concentration, for each label.
      label: the column of labels.
      sizes: `Sizes("equal")`, or another rule for sizes: the authors use QuantitySkew(sigma=0.3) for unequal ones.

    Source: Acar et al. 2021, FedDyn, section 4, https://arxiv.org/abs/2111.04263; equal sizes: Hsu et al. 2019,
    https://arxiv.org/abs/1909.06335
    """

    alpha: float
    _: KW_ONLY
    label: str = "y"
    sizes: SizeRule = field(default_factory=lambda: Sizes("equal"))

    def __post_init__(self) -> None:
        positive(alpha=self.alpha)
        if not isinstance(self.sizes, SizeRule):
            raise DataError(f"sizes={self.sizes!r} must be a rule for sizes: IID(), Sizes(...) or QuantitySkew(...).")

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        found, codes = labels(dataset, self.label)
        clients = client_count(dataset, clients, self.sizes.least)
        wanted = self.sizes.sizes(len(dataset), clients, rng)
        left = np.bincount(codes)
        mixes = rng.dirichlet(np.full(len(found), self.alpha), clients)
        taken = np.zeros((clients, len(found)), dtype=np.int64)
        while wanted.any():  # each pass fills every client or uses up a label
            draws = rng.multinomial(wanted, _over_what_is_left(mixes, left))
            for label in np.flatnonzero(draws.sum(0) > left):
                draws[:, label] = rng.multivariate_hypergeometric(draws[:, label], left[label], method="marginals")
            taken += draws
            wanted = wanted - draws.sum(1)
            left = left - draws.sum(0)
        return by_owner(_deal(codes, taken.T, rng), clients)


@dataclass(frozen=True)
class Shards(Partitioner):
    """Rows sorted by label, cut into equal shards; every client gets `per_client` of them at random.

    With 2 shards and 600 rows a client (MNIST, 100 clients) most clients see two digits only.

    Args:
      per_client: shards for each client.
      label: the column to sort by; rows of one label stay in their order.
      uneven: lets shards differ by one row where the rows do not divide; otherwise that is an error.

    Source: McMahan et al. 2017, section 3, https://arxiv.org/abs/1602.05629
    """

    per_client: int = 2
    _: KW_ONLY
    label: str = "y"
    uneven: bool = False

    def __post_init__(self) -> None:
        whole_number(least=1, per_client=self.per_client)

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        _, codes = labels(dataset, self.label)
        clients = client_count(dataset, clients)
        shards = clients * self.per_client
        if shards > len(dataset):
            raise DataError(f"{clients} clients with {self.per_client} shards each need {shards} rows, but there are "
                            f"{len(dataset)}: lower clients or per_client.")  # fmt: skip
        if len(dataset) % shards and not self.uneven:
            even = len(dataset) - len(dataset) % shards
            raise DataError(
                f"{len(dataset)} rows do not divide into {shards} shards ({clients} clients with {self.per_client}): "
                f"set uneven=True, or keep the first {even} rows, dataset.take(range({even}))."
            )
        shard_owner = rng.permutation(shards) // self.per_client
        owner = np.empty(len(dataset), dtype=np.int64)
        owner[np.argsort(codes, kind="stable")] = np.repeat(shard_owner, apportion(len(dataset), np.ones(shards)))
        return by_owner(owner, clients)


@dataclass(frozen=True)
class Pathological(Partitioner):
    """Every client has exactly `classes` labels; a label's rows are shared equally among the clients that have it.

    Labels are dealt like cards from shuffled decks that hold each label once, so that all labels find as many clients
    as each other, or one more or less.

    Source: Li et al. 2022, NIID-Bench, "#C = k", https://arxiv.org/abs/2102.02079
    """

    classes: int = 2
    _: KW_ONLY
    label: str = "y"

    def __post_init__(self) -> None:
        whole_number(least=1, classes=self.classes)

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        found, codes = labels(dataset, self.label)
        clients = client_count(dataset, clients)
        if self.classes > len(found):
            raise DataError(f"classes={self.classes} > {len(found)} labels in column '{self.label}': lower classes.")
        if clients * self.classes < len(found):
            raise DataError(
                f"{clients} clients with classes={self.classes} leave some of the {len(found)} labels to nobody: "
                f"raise clients or classes until their product is at least {len(found)}."
            )
        totals = np.bincount(codes)
        hands = self._hands(len(found), clients, rng)
        holders = [np.flatnonzero((hands == label).any(1)) for label in range(len(found))]
        for label, (held_by, total) in enumerate(zip(holders, totals, strict=True)):
            if len(held_by) > total:
                raise DataError(f"label {found[label]!s} has {total} rows for {len(held_by)} clients: lower clients.")
        return by_owner(_deal(codes, self._shares(totals, holders, clients), rng), clients)

    def _hands(self, deck_size: int, clients: int, rng: np.random.Generator) -> np.ndarray:
        deck: list[int] = []
        hands = np.empty((clients, self.classes), dtype=np.int64)
        for hand in hands:
            held: list[int] = []
            while len(held) < self.classes:
                fresh = next((place for place, card in enumerate(deck) if card not in held), None)
                if fresh is None:
                    deck.extend(rng.permutation(deck_size).tolist())
                else:
                    held.append(deck.pop(fresh))
            hand[:] = held
        return hands

    @staticmethod
    def _shares(totals: np.ndarray, holders: list[np.ndarray], clients: int) -> Iterator[np.ndarray]:
        for total, held_by in zip(totals, holders, strict=True):
            shares = np.zeros(clients, dtype=np.int64)
            shares[held_by] = apportion(int(total), np.ones(len(held_by)))
            yield shares


@dataclass(frozen=True)
class Distribution(Partitioner):
    """Given shares of each label: client k gets the part shares[c][k] / Σ_j shares[c][j] of the rows with label c.

    Args:
      shares: one tuple for each label, in sorted order of the labels, of one number of at least 0 for each client.
      label: the column of labels.

    Source: the distribution partitioner of Flower Datasets, https://flower.ai/docs/datasets
    """

    shares: tuple[tuple[float, ...], ...]
    _: KW_ONLY
    label: str = "y"

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.shares}
        if len(widths) != 1 or widths == {0}:
            raise DataError(f"shares must be tuples of one number a client, not of lengths {sorted(widths)}.")
        table = np.array(self.shares, dtype=float)
        if not np.all(np.isfinite(table)) or not np.all(table >= 0) or not np.all(table.sum(1) > 0):
            raise DataError("shares must be numbers of at least 0, with one above 0 for each label: mend the table.")

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        found, codes = labels(dataset, self.label)
        table = np.array(self.shares, dtype=float)
        if len(table) != len(found):
            raise DataError(f"shares are given for {len(table)} labels, but column '{self.label}' has {len(found)}.")
        if clients not in (None, table.shape[1]):
            raise DataError(f"clients={clients}, but shares are given for {table.shape[1]}: lower or raise clients.")
        dealt = (apportion(int(total), row) for total, row in zip(np.bincount(codes), table, strict=True))
        return by_owner(_deal(codes, dealt, rng), table.shape[1])


def _deal(codes: np.ndarray, shares: Iterable[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The owner of every row, when client k gets shares[c][k] random rows with label c."""
    owner = np.empty(len(codes), dtype=np.int64)
    by_label = np.argsort(codes, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes))])
    for label, share in enumerate(shares):
        rows = rng.permutation(by_label[bounds[label] : bounds[label + 1]])
        owner[rows] = np.repeat(np.arange(len(share)), share)
    return owner


def _top_up(owner: np.ndarray, clients: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """Moves random rows from clients with more than `least` to those with fewer, in proportion to what is above it."""
    sizes = np.bincount(owner, minlength=clients)
    lacking = np.maximum(least - sizes, 0)
    if not lacking.any():
        return owner
    giving = apportion(int(lacking.sum()), np.maximum(sizes - least, 0).astype(float))
    shuffled = rng.permutation(len(owner))
    grouped = shuffled[np.argsort(owner[shuffled], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(owner)) - starts[owner[grouped]]
    moved = rng.permutation(grouped[place < giving[owner[grouped]]])
    owner = owner.copy()
    owner[moved] = np.repeat(np.arange(clients), lacking)
    return owner


def _over_what_is_left(mixes: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Each client's mix over the labels of which rows are left; what is left itself where the mix has none of them."""
    open_mixes = mixes * (left > 0)
    totals = open_mixes.sum(1, keepdims=True)
    safe = totals[:, 0] > 1e-300
    open_mixes[safe] /= totals[safe]
    open_mixes[~safe] = left / left.sum()
    return open_mixes
