"""One bit a coordinate: the sign, scaled by each client for itself, or voted on by all.

    Sign           sent: sign(a) and ‖a‖₁/d of each tensor, a = x + memory          does not add up
    MajorityVote   sent: sign(x)          decode: step · sign(Σ sign(x))             adds up: integers

The scaled sign is biased towards the mean magnitude; error feedback sends later what it left out, and makes it converge
as SGD does. The vote forgets magnitudes altogether: the server moves every coordinate by the same step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Array, Tensors
from hansa.privacy.checks import positive
from hansa.stages.coded import Code, Coded
from hansa.stages.flat import Flat, flats, shaped
from hansa.stages.pack import pack_bits, unpack_bits


@dataclass(frozen=True)
class Sign(Stage):
    """The sign of each coordinate and one scale for each tensor, with what is left out kept at the worker.

    Put it last, behind the mean: what it makes cannot be added. One bit a coordinate and 8 bytes a tensor.

    Args:
      error_feedback: keeps the rest in the worker's memory and adds it to its next update. It makes the bound on one
        contribution infinite (noise refuses it); without it a decoded contribution is never longer than it was.

    Guarantees:
      With error feedback, what is sent and what is kept add up to the update and what was kept before.

    Source: Karimireddy et al. 2019, Error Feedback Fixes SignSGD, https://arxiv.org/abs/1901.09847
    """

    error_feedback: bool = field(default=True, kw_only=True)
    remembers = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "remembers", self.error_feedback)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a value that is rounded already, and the way down, where a model would lose its magnitudes."""
        if "value" not in signal.parts:
            raise fault("Sign in `down` would make all weights of a tensor equal but for signs: use Quantise there.")
        return Coded(signal, setting, flats(signal, "Sign"), _Signs, self.error_feedback)


class _Signs(Code):
    """Signs, packed, and the mean magnitude of each tensor."""

    growth, error = 1 + 2.0**-20, 0.0

    def __init__(self, flat: Flat) -> None:
        self._sizes, self._size, self._type = flat.sizes, flat.size, flat.work
        self.shapes = {":signs": ((-(-flat.size // 8),), "uint8"), ":scales": ((len(flat.sizes),), "float64")}

    def write(self, vector: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tensors = np.split(vector, np.cumsum(self._sizes)[:-1])
        means = [float(np.abs(tensor).mean(dtype=np.float64)) if len(tensor) else 0.0 for tensor in tensors]
        return {":signs": pack_bits(vector >= 0, 1), ":scales": np.array(means)}

    def read(self, arrays: Mapping[str, Array]) -> np.ndarray:
        scales = np.repeat(np.asarray(arrays[":scales"]).astype(self._type), self._sizes)
        return np.where(unpack_bits(arrays[":signs"], self._size, 1), scales, -scales)


@dataclass(frozen=True)
class MajorityVote(Stage):
    """Moves each coordinate by `step` in the direction that most clients vote for; nowhere if they are split.

    Votes are −1, 0 or 1 and add up as integers under any reducer that adds. `Pack` takes them to 1.6 bits.

    Args:
      step: by which a coordinate of the mean moves; above 0, in the unit of the update.

    Guarantees:
      Fewer than half of the voters cannot turn a coordinate that the others agree on. One client may turn all that are
      nearly split, so that no noise in front of it protects: `Gaussian` is refused.

    Sources: Bernstein et al. 2018, signSGD, https://arxiv.org/abs/1802.04434; the vote: Bernstein et al. 2019,
    https://arxiv.org/abs/1810.05291
    """

    step: float
    alone = False

    def __post_init__(self) -> None:
        positive(", in the unit of the update", step=self.step)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses weights, which a vote forgets, rounded or selected values, and a reducer's discounts."""
        if "weight" in signal.parts or not signal.divided:
            raise fault("MajorityVote counts every client the same: put UniformMean() before it.")
        if any(not signal.parts[name].additive for name in signal.averaged):
            raise fault("MajorityVote adds up votes, which a selection does not: leave one of them out.")
        if setting.algorithm.discounts:
            raise fault(f"MajorityVote knows no fractions of a vote, as {type(setting.algorithm).__name__} asks.")
        return _Voted(self, signal, flats(signal, "MajorityVote"), setting)


class _Voted(Step):
    def __init__(self, stage: MajorityVote, signal: Signal, found: Sequence[Flat], setting: Setting) -> None:
        self._stage = stage
        # The mean behind it in decoding divides by the expected count where chance decides who is asked.
        self._over_expected = setting.sampling.kind == "poisson"
        self._dtypes = {f"{flat.name}/{name}": dtype for flat in found for name, (_, dtype) in flat.shapes.items()}
        parts = {}
        for flat in found:
            votes = {name: (shape, "int8") for name, (shape, _) in flat.shapes.items()}
            shapes = {**flat.others, **votes}
            parts[flat.name] = shaped(
                signal.parts[flat.name], shapes, domain="integer", l2=math.sqrt(flat.size), linf=1.0
            )
        super().__init__(signal.with_(**parts))

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        return {**sensitivity, **dict.fromkeys({name.split("/", 1)[0] for name in self._dtypes}, math.inf)}

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        return x.updated({name: np.sign(np.asarray(x[name])).astype(np.int8) for name in self._dtypes}), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        move = self._stage.step * (round.expected if self._over_expected else round.count)
        moved = {
            name: np.asarray(np.sign(total[name]) * move, dtype)  # an array, even of no axes: a mean divides in place
            for name, dtype in self._dtypes.items()
        }
        return total.updated(moved), state
