"""Stand-ins for the usual federated data sets: as many clients, examples and classes, but made up from a seed.

    clients = twin("stackoverflow")          342,477 clients; each is made when it is opened, and nothing is stored
    clients.truth(id)                        what it was made from, so that what was learnt can be held against it

A figure reached on a stand-in says how fast something is, or whether it copes with such clients. It is *not* a figure
on the data set whose name it has. Published are the clients and examples of the training set and the classes:

| name            | clients | examples    | classes | one example here                             | source      |
|-----------------|---------|-------------|---------|----------------------------------------------|-------------|
| `emnist`        | 3,400   | 671,585     | 62      | 1 × 28 × 28 grey levels                      | TFF, LEAF   |
| `emnist_digits` | 3,383   | 341,873     | 10      | 1 × 28 × 28 grey levels                      | TFF         |
| `cifar100`      | 500     | 50,000      | 100     | 3 × 32 × 32 (100 for each client)            | TFF         |
| `celeba`        | 9,343   | 200,288     | 2       | 3 × 32 × 32 (there 84 × 84; all examples)    | LEAF        |
| `gldv2`         | 1,262   | 164,172     | 2,028   | 3 × 32 × 32 (there photographs)              | Hsu 2020    |
| `gld23k`        | 233     | 23,080      | 203     | 3 × 32 × 32 (there photographs)              | Hsu 2020    |
| `inaturalist`   | 9,275   | 120,300     | 1,203   | 3 × 32 × 32 (there photographs)              | Hsu 2020    |
| `flair`         | 51,414  | 429,078     | 17      | 3 × 32 × 32, one label (there several)       | Song 2022   |
| `shakespeare`   | 715     | 16,068      | 90      | 80 characters and the same one further on    | TFF         |
| `stackoverflow` | 342,477 | 135,818,730 | 10,004  | 20 words and the same one further on         | TFF         |
| `stackoverflow_tags` | 342,477 | 135,818,730 | 500 | which of 10,000 words, and which of 500 tags | TFF         |

Ours alone are how sizes spread (log-normal, with the published sum) and how labels do (Dirichlet).

Source: Caldas et al. 2018, LEAF, https://arxiv.org/abs/1812.01097; Hsu, Qi, Brown 2020,
https://arxiv.org/abs/2003.08082; Song, Granqvist, Talwar 2022, FLAIR, https://arxiv.org/abs/2207.08869; TFF:
https://www.tensorflow.org/federated/api_docs/python/tff/simulation/datasets
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError
from hansa.data.generate import Generated
from hansa.data.partitioners.size import apportion

# The parts of the seed sequence: what is drawn for all clients, and for one.
_SIZES, _PROTOTYPES, _SUCCESSORS, _CLIENT, _EXAMPLES = range(5)
GRID = 7  # a prototype is a random field on so many points a side, enlarged


@dataclass(frozen=True, kw_only=True)
class _Twin(Generated):
    """What both kinds share: how many examples each client has.

    Args:
      clients: how many.
      examples: of all clients together.
      sigma: log-normal spread of the clients' sizes; 0 gives all the same.
      alpha: Dirichlet concentration of a client's labels or tags; small gives few to each.
      seed: the same one gives the same clients, whichever are opened and in whatever order.
      draw: another number gives other examples of the same clients: a test set.
    """

    clients: int
    examples: int
    sigma: float
    alpha: float
    seed: int = 0
    draw: int = 0

    def __post_init__(self) -> None:
        if self.clients < 1 or self.examples < self.clients:
            raise DataError(f"clients={self.clients}, examples={self.examples}: each client needs at least one.")
        if not 0 <= self.sigma < np.inf or not 0 < self.alpha < np.inf or self.seed < 0 or self.draw < 0:
            raise DataError(
                f"sigma={self.sigma}, alpha={self.alpha}, seed={self.seed}, draw={self.draw}: alpha must be above 0, "
                "and none below."
            )

    def sizes(self) -> np.ndarray:
        """How many examples each client has; they sum to `examples`."""
        return self._sizes

    @cached_property
    def _sizes(self) -> np.ndarray:
        exponent = self.sigma * np.random.default_rng([self.seed, _SIZES]).standard_normal(self.clients)
        return apportion(self.examples, np.exp(exponent), least=1)

    def _rngs(self, client: str) -> tuple[np.random.Generator, np.random.Generator]:
        """What a client is like, and what its examples are."""
        number = self.number(client)
        who = np.random.default_rng([self.seed, _CLIENT, number])
        return who, np.random.default_rng([self.seed, _EXAMPLES, number, self.draw])

    def _labels(self, mix: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.minimum(np.searchsorted(np.cumsum(mix), rng.random(count), side="right"), len(mix) - 1)


@dataclass(frozen=True, kw_only=True)
class ImageTwin(_Twin):
    """Images of made-up characters, drawn by each client in its own hand.

        image = clip(gain_k · shift_k(prototype_c) + field_k + noise)       label c ~ Dirichlet mix of client k

    Opened: x float32 of shape (examples, *shape) in 0..1, y int64.
    """

    classes: int
    shape: tuple[int, ...]
    noise: float = 0.25

    def truth(self, client: str) -> np.ndarray:
        """What this client draws for each class when there is no noise: float32 of shape (classes, *shape)."""
        who, _ = self._rngs(client)
        self._mix(who)
        return self._in_own_hand(self._prototypes, who)

    def open(self, client: str) -> Dataset:
        who, rng = self._rngs(client)
        y = self._labels(self._mix(who), int(self._sizes[int(client)]), rng)
        x = self._in_own_hand(self._prototypes[y], who)
        x += np.float32(self.noise) * rng.standard_normal(x.shape, dtype=np.float32)
        return Dataset(x=np.clip(x, 0, 1, out=x), y=y.astype(np.int64))

    def _mix(self, who: np.random.Generator) -> np.ndarray:
        return who.dirichlet(np.full(self.classes, self.alpha))

    def _in_own_hand(self, images: np.ndarray, who: np.random.Generator) -> np.ndarray:
        gain, shift = who.uniform(0.7, 1.0), who.integers(-2, 3, 2)
        moved = np.roll(images, tuple(shift.tolist()), axis=(-2, -1))
        return np.asarray(np.float32(gain) * moved + np.float32(0.15) * _field(self.shape, who))

    @property
    def _prototypes(self) -> np.ndarray:
        return _prototypes(self.classes, self.shape, self.seed)


@dataclass(frozen=True, kw_only=True)
class TextTwin(_Twin):
    """Sentences in which each next word is one of three kinds, and whose tags can be told from their words.

        next = successor(word) with `predictable`, a word of the sentence's tag with `topical`, else any by Zipf's law

    Whoever always says `successor` is right in at least the share `predictable` of places. Words of tag t are t, t + T,
    t + 2T, …; tags are drawn from the client's own Dirichlet mix.

    Opened: x int64 of shape (examples, length) and y of the same shape, the words one further on; with `bag`: x float32
    (examples, words), 1 where a word occurs, and y float32 (examples, tags), 1 for each of the one to three tags.
    """

    words: int
    length: int
    tags: int
    bag: bool = False
    predictable: float = 0.3
    topical: float = 0.3

    def truth(self, client: str) -> np.ndarray:
        """How often this client uses each tag, and so each tag's words: shape (tags,), of sum 1."""
        return self._rngs(client)[0].dirichlet(np.full(self.tags, self.alpha))

    @property
    def successor(self) -> np.ndarray:
        """The word that most often follows each word."""
        return _successors(self.words, self.seed)

    def open(self, client: str) -> Dataset:
        who, rng = self._rngs(client)
        count, mix = int(self._sizes[int(client)]), who.dirichlet(np.full(self.tags, self.alpha))
        tags = np.stack([self._labels(mix, count, rng) for _ in range(3)], axis=1)
        words = self._sentences(tags[np.arange(count)[:, None], rng.integers(0, 3, (count, self.length + 1))], rng)
        if not self.bag:
            return Dataset(x=words[:, :-1].copy(), y=words[:, 1:].copy())
        rows = np.arange(count)[:, None]
        x, y = np.zeros((count, self.words), np.float32), np.zeros((count, self.tags), np.float32)
        x[rows, words], y[rows, tags] = 1, 1
        return Dataset(x=x, y=y)

    def _sentences(self, tags: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`tags` says which one's words may stand at each place."""
        shape, successor = tags.shape, self.successor
        kind = rng.random(shape)
        topical = tags + self.tags * np.searchsorted(_zipf(self.words // self.tags), rng.random(shape))
        words = np.where(kind < self.topical, topical, np.searchsorted(_zipf(self.words), rng.random(shape)))
        follows = kind >= 1 - self.predictable
        for place in range(1, shape[1]):
            words[:, place] = np.where(follows[:, place], successor[words[:, place - 1]], words[:, place])
        return words


_IMAGES = {"shape": (3, 32, 32)}
_STACKOVERFLOW = {"clients": 342_477, "examples": 135_818_730, "sigma": 1.2, "alpha": 0.05, "length": 20, "tags": 500}
TWINS: Mapping[str, ImageTwin | TextTwin] = MappingProxyType({
    "emnist": ImageTwin(clients=3400, examples=671_585, sigma=0.4, alpha=5.0, classes=62, shape=(1, 28, 28)),
    "emnist_digits": ImageTwin(clients=3383, examples=341_873, sigma=0.4, alpha=5.0, classes=10, shape=(1, 28, 28)),
    "cifar100": ImageTwin(clients=500, examples=50_000, sigma=0.0, alpha=0.1, classes=100, **_IMAGES),  # type: ignore[arg-type]
    "celeba": ImageTwin(clients=9343, examples=200_288, sigma=0.35, alpha=1.0, classes=2, **_IMAGES),  # type: ignore[arg-type]
    "gldv2": ImageTwin(clients=1262, examples=164_172, sigma=1.0, alpha=0.02, classes=2028, **_IMAGES),  # type: ignore[arg-type]
    "gld23k": ImageTwin(clients=233, examples=23_080, sigma=1.0, alpha=0.05, classes=203, **_IMAGES),  # type: ignore[arg-type]
    "inaturalist": ImageTwin(clients=9275, examples=120_300, sigma=1.0, alpha=0.02, classes=1203, **_IMAGES),  # type: ignore[arg-type]
    "flair": ImageTwin(clients=51_414, examples=429_078, sigma=1.2, alpha=0.5, classes=17, **_IMAGES),  # type: ignore[arg-type]
    "shakespeare": TextTwin(clients=715, examples=16_068, sigma=1.2, alpha=0.5, words=90, length=80, tags=10),
    "stackoverflow": TextTwin(words=10_004, **_STACKOVERFLOW),  # type: ignore[arg-type]
    "stackoverflow_tags": TextTwin(words=10_000, bag=True, **_STACKOVERFLOW),  # type: ignore[arg-type]
})  # fmt: skip


def twin(name: str, clients: int | None = None, seed: int = 0, **changes: object) -> ImageTwin | TextTwin:
    """A stand-in for a data set; see the table at the top of this page.

    Args:
      name: of the data set.
      clients: fewer or more than there are; the number of examples follows in proportion.
      seed: the same one gives the same clients.
      **changes: other fields of `ImageTwin` or `TextTwin`, such as `shape=(28, 28)`,
        `sigma=`, `alpha=` or `draw=1` for a test set.

    Raises:
      DataError: an unknown name or field.

    >>> clients = twin("emnist", clients=10)
    >>> len(clients), clients.sizes().sum(), clients.open("3")["x"].shape[1:]
    (10, np.int64(1975), (1, 28, 28))
    """
    if name not in TWINS:
        raise DataError(f"'{name}' has no stand-in: there are {sorted(TWINS)}.")
    found = TWINS[name]
    known = {field.name for field in dataclasses.fields(found)}
    if unknown := sorted(set(changes) - known):
        raise DataError(f"the stand-in '{name}' has no '{unknown[0]}': it has {sorted(known)}.")
    if clients is not None:
        examples = max(clients, round(found.examples * clients / found.clients))
        changes = {"clients": clients, "examples": examples, **changes}
    return dataclasses.replace(found, seed=seed, **changes)  # type: ignore[arg-type]


def _field(shape: tuple[int, ...], rng: np.random.Generator, count: int | None = None) -> np.ndarray:
    """Smooth random images in 0..1: a small random grid, enlarged bilinearly."""
    *leading, high, wide = shape if count is None else (count, *shape)
    coarse = rng.random((*leading, GRID, GRID), dtype=np.float32)
    for axis, size in ((-2, high), (-1, wide)):
        at = np.linspace(0, GRID - 1, size, dtype=np.float32)
        low = np.minimum(at.astype(np.intp), GRID - 2)
        part = at - low.astype(np.float32)
        part = part[:, None] if axis == -2 else part
        coarse = np.take(coarse, low, axis) * (1 - part) + np.take(coarse, low + 1, axis) * part
    return coarse


@lru_cache(maxsize=4)
def _prototypes(classes: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if len(shape) < 2:
        raise DataError(f"shape={shape}: images need at least two axes, as in (28, 28).")
    field = _field(shape, np.random.default_rng([seed, _PROTOTYPES]), classes)
    return (field > 0.55).astype(np.float32)  # strokes rather than clouds


@lru_cache(maxsize=4)
def _successors(words: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, _SUCCESSORS]).permutation(words)


@lru_cache(maxsize=8)
def _zipf(words: int) -> np.ndarray:
    """Cumulative probabilities of ranks, p ∝ 1 / rank; the last is 1, which no uniform number reaches."""
    weights = 1 / np.arange(1, words + 1)
    total: np.ndarray = np.cumsum(weights) / weights.sum()
    total[-1] = 1.0
    return total
