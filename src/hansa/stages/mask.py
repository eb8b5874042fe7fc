"""A random subset of the coordinates, known to both sides by its seed: only their values travel.

    encode   y = x restricted to S, |S| = k          decode   d/k · y on S, 0 elsewhere

S is drawn uniformly among all subsets of k coordinates, so that the mean over seeds is x. With one mask for all clients
of a round contributions add up; with a mask for each the errors of different clients cancel in the mean.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors
from hansa.stages.flat import Flat, flats
from hansa.stages.sum import likely_most, unit

_KEPT, _SEED = ":kept", ":mask"


@dataclass(frozen=True)
class RandomMask(Stage):
    """Sends a random `fraction` of the coordinates of the value, and of side values each by itself.

    Args:
      fraction: of the coordinates, in (0, 1]; at least one is sent.
      shared: one mask for all clients of a round, from the public seed, which adds up under any reducer; else one for
        each, whose seed travels with it (8 bytes), and which a reducer that sees each contribution must decode.
      scaled: whether what arrives is scaled by d/k, without which a round moves the model by that much less, but with
        the same noise relative to the move: leave it out where server_lr is tuned anyway.
      seed: of the shared masks, public; the round's number is added by the pipeline's state.

    Guarantees:
      Unbiased if scaled, with NMSE d/k − 1 for one contribution. One client can change the decoded total d/k times as
      much as without it, which noise in front of it pays for: put `Gaussian` behind a shared mask instead.

    Source: Konečný et al. 2016, section 2.1 and 2.2, https://arxiv.org/abs/1610.05492
    """

    fraction: float
    shared: bool = field(default=True, kw_only=True)
    scaled: bool = field(default=True, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction={self.fraction}: it lies in (0, 1].")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses rounded values, the way down, and shared masks where updates may be of an older round."""
        if "value" not in signal.parts:
            raise fault(
                "RandomMask in `down` would set most of the model to zero: leave it out, or use Quantise there."
            )
        if self.shared and setting.sampling.max_staleness:
            raise fault(
                "RandomMask(shared=True) has a mask for each round, which stale updates do not know: set "
                "max_staleness=0, or shared=False."
            )
        found = flats(signal, "RandomMask")
        if any({_KEPT, _SEED} & signal.parts[flat.name].shapes.keys() for flat in found):
            raise fault("RandomMask finds a mask already: keep one RandomMask in the pipeline.")
        return _Masked(self, signal, setting, found)


class _Masked(Step):
    def __init__(self, stage: RandomMask, signal: Signal, setting: Setting, found: Sequence[Flat]) -> None:
        self._stage, self._flats = stage, found
        self._kept = {flat.name: math.ceil(flat.size * stage.fraction) for flat in found}
        self._scales = {flat.name: flat.size / self._kept[flat.name] if stage.scaled else 1.0 for flat in found}
        self._widening: dict[str, float] = {}
        parts = {}
        for flat in found:
            part, kept = signal.parts[flat.name], self._kept[flat.name]
            # The scaled total is rounded to its own type, with one client and without.
            self._widening[flat.name] = self._scales[flat.name] * (1 + 2 * unit(part) * likely_most(setting))
            shapes = {_KEPT: ((kept,), str(flat.dtype))}
            if not stage.shared:
                shapes[_SEED] = ((1,), "uint64")
            l2 = min(part.l2, part.linf * math.sqrt(kept))
            parts[flat.name] = flat.part(part, shapes, l2=l2, additive=part.additive and stage.shared)
        super().__init__(signal.with_(**parts))

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        return {name: norm * self._widening.get(name, 1.0) for name, norm in sensitivity.items()}

    def start(self) -> Tensors:
        return Tensors({"turn": np.zeros(1, np.int64)})

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        for flat in self._flats:
            vectors, kept = flat.joined(x).astype(flat.dtype, copy=False), self._kept[flat.name]
            if self._stage.shared:
                arrays = {_KEPT: vectors[:, self._shared(flat, state)]}
            else:
                seeds = [int(rng.integers(1 << 63)) for rng in rngs]
                pairs = zip(vectors, seeds, strict=True)
                arrays = {
                    _KEPT: np.stack([vector[chosen(flat.size, kept, seed)] for vector, seed in pairs]),
                    _SEED: np.array(seeds, np.uint64)[:, None],
                }
            x = flat.coded(x, arrays)
        return x, memory

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        for flat in self._flats:
            if self._stage.shared:
                places = self._shared(flat, state)
            else:
                places = chosen(flat.size, self._kept[flat.name], int(x[f"{flat.name}/{_SEED}"][0]))
            vector = np.zeros(flat.size, flat.work)
            vector[places] = np.asarray(x[f"{flat.name}/{_KEPT}"]) * self._scales[flat.name]
            x = flat.restored(x, vector, [_KEPT, _SEED])
        return x

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        return self.decode_one(total, state), Tensors({"turn": state["turn"] + 1})

    def _shared(self, flat: Flat, state: Tensors) -> np.ndarray:
        return _drawn(flat.size, self._kept[flat.name], flat.name, self._stage.seed, int(state["turn"][0]))


def chosen(size: int, count: int, seed: int) -> np.ndarray:
    """`count` of `size` places, ascending, drawn by a public seed: the same on every machine.

    >>> chosen(10, 3, seed=1).tolist()
    [4, 5, 8]
    """
    keys = np.random.PCG64(seed).random_raw(-(-size // 2)).astype("<u8").view("<u4")[:size]
    last = np.partition(keys, count - 1)[count - 1]
    return np.flatnonzero(keys <= last)[:count]


@functools.lru_cache(maxsize=2)  # of all clients of a round, and of one side value
def _drawn(size: int, count: int, part: str, seed: int, turn: int) -> np.ndarray:
    return chosen(size, count, Stream("mask", part, seed, turn).seed())
