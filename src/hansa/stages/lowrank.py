"""A random low-dimensional view of every matrix: a structured update whose one factor all clients share.

    encode   B = Aᵀ·M, A (n, r) with orthonormal columns          decode   M ≈ n/r · A·B

A is drawn anew each round from a public seed; only B (r, m) travels. It is linear, so that contributions add up.
Matrices are tensors of two axes or more, their first axis against all others, turned so that n ≥ m; what a factor would
not make smaller (biases) travels as it is.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors
from hansa.stages.flat import flats, shaped
from hansa.stages.sum import likely_most, unit


@dataclass(frozen=True)
class LowRank(Stage):
    """Sends each matrix of the value, and of side values, as its view from `rank` random directions.

    Args:
      rank: r; rows of what travels for each matrix of n × m: r/n of its size.
      seed: of the directions, public; the round's number is added by the pipeline's state.

    Guarantees:
      Unbiased: the mean of (n/r)·A·Aᵀ over seeds is the identity. NMSE about n/r − 1 for one contribution, however good
      its approximation of low rank is: it helps where many rounds average it out. For directions that follow the
      updates see `PowerSGD`.

    Source: Konečný et al. 2016, section 2.1, https://arxiv.org/abs/1610.05492, with B projected instead of trained.
    """

    rank: int
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank >= 1):
            raise ConfigError(f"rank={self.rank}: a whole number, at least 1.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses rounded values, a signal without matrices, the way down, and stale updates."""
        if setting.sampling.max_staleness:
            raise fault("LowRank has new directions each round, which stale updates do not know: set max_staleness=0.")
        found = matrices(signal, "LowRank")
        chosen = {name: shape for name, shape in found.items() if self.rank < max(shape)}
        if not chosen:
            raise fault(f"LowRank(rank={self.rank}) makes no tensor smaller: lower rank, or leave it out.")
        return _Projected(self, signal, setting, chosen)


class _Projected(Step):
    def __init__(self, stage: LowRank, signal: Signal, setting: Setting, chosen: Mapping[str, tuple[int, int]]) -> None:
        self._stage, self._matrices = stage, chosen
        self._before = signal.shapes
        self._widening: dict[str, float] = {}
        parts = {}
        for part in {name.split("/", 1)[0] for name in chosen}:
            mine = {name.split("/", 1)[1]: shape for name, shape in chosen.items() if name.startswith(part + "/")}
            shapes = dict(signal.parts[part].shapes)
            for name, shape in mine.items():
                shapes[name] = ((stage.rank, min(shape)), shapes[name][1])
            l2 = signal.parts[part].l2 * (1 + _ROUNDING)
            parts[part] = shaped(signal.parts[part], shapes, l2=l2, linf=l2)
            most = max(max(shape) / stage.rank for shape in mine.values())
            # The total is decoded in float64 and rounded to its own type, with one client and without.
            self._widening[part] = most * (1 + 2 * unit(signal.parts[part]) * likely_most(setting))
        super().__init__(signal.with_(**parts))

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        return {name: norm * self._widening.get(name, 1.0) for name, norm in sensitivity.items()}

    def start(self) -> Tensors:
        return Tensors({"turn": np.zeros(1, np.int64)})

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        seen = {}
        for name, shape in self._matrices.items():
            array = np.asarray(x[name])
            stacked = array.reshape(-1, *shape)
            directions = self._directions(name, state).T.astype(array.dtype)
            views = [directions @ (matrix if shape[0] >= shape[1] else matrix.T) for matrix in stacked]
            seen[name] = np.stack(views)
        return x.updated(seen), memory

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        whole = {}
        for name, shape in self._matrices.items():
            directions = self._directions(name, state)
            matrix = directions @ np.asarray(x[name], np.float64) * (max(shape) / self._stage.rank)
            at, dtype = self._before[name]
            whole[name] = (matrix if shape[0] >= shape[1] else matrix.T).astype(dtype).reshape(at)
        return x.updated(whole)

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        return self.decode_one(total, state), Tensors({"turn": state["turn"] + 1})

    def _directions(self, name: str, state: Tensors) -> np.ndarray:
        long = max(self._matrices[name])
        return _drawn(long, self._stage.rank, name, self._stage.seed, int(state["turn"][0]))


_ROUNDING = 2.0**-10  # more than a float32's product with orthonormal columns errs by, up to 10⁷ rows


def matrices(signal: Signal, stage: str) -> dict[str, tuple[int, int]]:
    """The tensors of two axes or more, by flat name, as (rows, columns); JobError for what is no update."""
    if "value" not in signal.parts:
        raise fault(f"{stage} in `down` would lose most of the model: leave it out, or use Quantise there.")
    found = {}
    for flat in flats(signal, stage):
        if not signal.parts[flat.name].additive:
            raise fault(f"{stage} finds a selection, which has no rows and columns: put {stage} before it.")
        for name, (shape, _) in flat.shapes.items():
            if len(shape) >= 2 and (size := math.prod(shape)):
                found[f"{flat.name}/{name}"] = (shape[0], size // shape[0])
    return found


def orthonormal(rows: int, columns: int, seed: int) -> np.ndarray:
    """A basis of a random subspace, drawn by a public seed: shape (rows, columns), float64, columns ≤ rows.

    Its projection has the mean columns/rows · I: the numbers that span it are symmetric and exchangeable.
    """
    words = np.random.PCG64(seed).random_raw(rows * columns)
    basis: np.ndarray = np.linalg.qr((words / 2.0**63 - 1).reshape(rows, columns))[0]
    return basis


@functools.lru_cache(maxsize=64)  # the matrices of one model
def _drawn(rows: int, rank: int, name: str, seed: int, turn: int) -> np.ndarray:
    return orthonormal(rows, rank, Stream("low rank", name, seed, turn).seed())
