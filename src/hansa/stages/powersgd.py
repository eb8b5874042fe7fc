"""Low-rank updates whose directions follow the updates themselves: power iteration across rounds.

    public     Q (m, r), P̂ (n, r): orthonormal, from the last round
    encode     M = x + memory,  P = M·Q,  Z = Mᵀ·P̂          memory ← M less what they decode to
    decode     M ≈ P·Qᵀ + P̂·Zᵀ − P̂·(P̂ᵀ·P)·Qᵀ,  then  P̂ ← orth(Σ P),  Q ← orth(Σ Z)

What is lost is (I − P̂P̂ᵀ)·M·(I − QQᵀ): decoding is linear, so that contributions add up, and exact on the rows and the
columns that the last round's total had. Vogels et al. orthonormalise Σ P between two exchanges; here both products use
the factors of the round before (their warm start), so that one leg is enough.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors
from hansa.stages.flat import shaped
from hansa.stages.lowrank import matrices, orthonormal


@dataclass(frozen=True)
class PowerSGD(Stage):
    """Sends each matrix of the value as two factors of `rank` columns, in directions learnt from the rounds before.

    Matrices are tensors of two axes or more, their first axis against all others; what the factors would not make
    smaller (biases) travels as it is.

    Args:
      rank: r; a matrix of n × m travels as r·(n + m) numbers.
      error_feedback: keeps what is lost in the worker's memory and adds it to its next update, without which directions
        that are never followed are never learnt. It makes the bound on one contribution infinite.

    Guarantees:
      With error feedback, what is sent and what is kept add up to the update and what was kept before, but for float
      rounding. Adds up under any reducer that adds. The factors are public, and made of the decoded total before any
      stage in front of it adds noise: `Gaussian` is refused there; without error feedback it may stand behind.

    Sources: Vogels et al. 2019, PowerSGD, https://arxiv.org/abs/1905.13727; one exchange with the factors of the round
    before: Zhang et al. 2023, ACP-SGD, https://arxiv.org/abs/2306.08881
    """

    rank: int
    error_feedback: bool = field(default=True, kw_only=True)
    remembers = True

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank >= 1):
            raise ConfigError(f"rank={self.rank}: a whole number, at least 1.")
        object.__setattr__(self, "remembers", self.error_feedback)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses rounded values, a signal without matrices, the way down, and stale updates."""
        if setting.sampling.max_staleness:
            raise fault("PowerSGD moves its factors each round, which stale updates do not know: set max_staleness=0.")
        found = {name: at for name, at in matrices(signal, "PowerSGD").items() if name.startswith("value/")}
        chosen = {name: (n, m) for name, (n, m) in found.items() if self.rank * (n + m) < n * m}
        if not chosen:
            raise fault(f"PowerSGD(rank={self.rank}) makes no tensor smaller: lower rank, or leave it out.")
        return _Factored(self, signal, chosen)


class _Factored(Step):
    def __init__(self, stage: PowerSGD, signal: Signal, chosen: Mapping[str, tuple[int, int]]) -> None:
        self._stage, self._matrices, self._before = stage, chosen, signal.shapes
        value = signal.parts["value"]
        shapes = {name: at for name, at in value.shapes.items() if f"value/{name}" not in chosen}
        for name, (rows, columns) in chosen.items():
            tensor, dtype = name.removeprefix("value/"), self._before[name][1]
            shapes[f"{tensor}:p"], shapes[f"{tensor}:z"] = ((rows, stage.rank), dtype), ((columns, stage.rank), dtype)
        # Both factors may have the whole norm of the matrix; 2⁻¹⁰ is more than their rounding.
        l2 = math.inf if stage.error_feedback else value.l2 * math.sqrt(2) * (1 + 2.0**-10)
        super().__init__(signal.with_(value=shaped(value, shapes, l2=l2, linf=l2)))

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        """Unbounded: the next factors show the total as it is here, before an earlier stage adds noise to it."""
        return {**sensitivity, "value": math.inf}

    def start(self) -> Tensors:
        factors = {}
        for name, (rows, columns) in self._matrices.items():
            for side, size in (("p", rows), ("q", columns)):
                basis = orthonormal(size, self._stage.rank, Stream("power", name, side).seed())
                factors[f"{name}:{side}"] = basis.astype(self._before[name][1])
        return Tensors(factors)

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        sent, kept = {}, {}
        for name, shape in self._matrices.items():
            stacked = np.array(x[name]).reshape(-1, *shape)
            if name in memory:
                stacked += np.asarray(memory[name]).reshape(stacked.shape)
            p, q = state[f"{name}:p"], state[f"{name}:q"]
            sent[f"{name}:p"] = np.stack([matrix @ q for matrix in stacked])
            sent[f"{name}:z"] = np.stack([matrix.T @ p for matrix in stacked])
            if self._stage.error_feedback:
                pairs = zip(sent[f"{name}:p"], sent[f"{name}:z"], strict=True)
                kept[name] = stacked - np.stack([_product(p, q, *pair) for pair in pairs])
        return Tensors({**{name: x[name] for name in x if name not in self._matrices}, **sent}), Tensors(kept)

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        whole = {name: x[name] for name in x if name.rsplit(":", 1)[0] not in self._matrices}
        for name in self._matrices:
            factors = (state[f"{name}:p"], state[f"{name}:q"], x[f"{name}:p"], x[f"{name}:z"])
            shape, dtype = self._before[name]
            whole[name] = _product(*map(np.asarray, factors)).astype(dtype, copy=False).reshape(shape)
        return Tensors(whole)

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        after = {}
        for name in self._matrices:
            for side, seen in (("p", total[f"{name}:p"]), ("q", total[f"{name}:z"])):
                key = f"{name}:{side}"
                after[key] = np.linalg.qr(seen)[0].astype(state[key].dtype) if np.any(seen) else state[key]
        return self.decode_one(total, state), Tensors(after)


def _product(p: np.ndarray, q: np.ndarray, seen: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """M from P = M·Q and Z = Mᵀ·P̂, as far as they show it."""
    product: np.ndarray = seen @ q.T + p @ (turned.T - (p.T @ seen) @ q.T)
    return product
