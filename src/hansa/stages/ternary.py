"""Three levels a coordinate, without bias: TernGrad.

s = max|x| of each tensor          sent: t ∈ {−1, 0, 1}, P(t = sign x) = |x|/s          decode: s·t
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Array
from hansa.stages.coded import Code, Coded
from hansa.stages.flat import Flat, flats
from hansa.stages.pack import pack, packed_size, unpack
from hansa.stages.quantise import Quantise, rounded


@dataclass(frozen=True)
class Ternary(Stage):
    """Rounds each tensor at random to −s, 0 or s.

    Args:
      shared: s is the bound that the clip declared, the same for all clients, so that contributions add up as integers
        under any reducer that adds: this is `Quantise(2)`, which `Pack` takes to 1.6 bits. Else each tensor of each
        contribution has its own largest magnitude, 1.6 bits a coordinate and 8 bytes a tensor, and does not add up.
      clip: with a scale of its own, cuts coordinates beyond this many standard deviations of their tensor first, which
        shortens them and makes s smaller; TernGrad's authors use 2.5. Infinity cuts nothing, and has no bias.

    Guarantees:
      The mean of what is decoded is the contribution, cut. Each coordinate's error is below s; one contribution may
      become s·√d long, which noise in front of it pays for.

    Source: Wen et al. 2017, TernGrad, https://arxiv.org/abs/1705.07878
    """

    shared: bool = field(default=False, kw_only=True)
    clip: float = field(default=math.inf, kw_only=True)

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ConfigError(f"clip={self.clip}: above 0, in standard deviations, as in 2.5; or infinity.")
        if self.shared and math.isfinite(self.clip):
            raise ConfigError(f"clip={self.clip} with shared=True: the scale is the declared bound; leave clip out.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a value that is rounded already, and the way down."""
        if "value" not in signal.parts:
            raise fault("Ternary in `down` would leave three values for a tensor's weights: use Quantise there.")
        if self.shared:
            return Quantise(2).bind(signal, setting)
        return Coded(signal, setting, flats(signal, "Ternary"), lambda flat: _Trits(flat, self.clip))


class _Trits(Code):
    """Digits of base 3, packed, and the scale of each tensor."""

    def __init__(self, flat: Flat, clip: float) -> None:
        self._sizes, self._size, self._type, self._clip = flat.sizes, flat.size, flat.work, clip
        self.shapes = {":trits": ((packed_size(flat.size, 1),), "uint8"), ":scales": ((len(flat.sizes),), "float64")}
        self.growth, self.error = math.sqrt(flat.size) * (1 + 2.0**-20), 1.0 + 2.0**-20

    def write(self, vector: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        scales, trits = [], []
        for tensor in np.split(vector, np.cumsum(self._sizes)[:-1]):
            most = float(np.abs(tensor).max(initial=0.0))
            if math.isfinite(self._clip) and len(tensor):
                most = min(most, self._clip * float(tensor.std(dtype=np.float64))) or most  # a constant has none
            scales.append(most)
            trits.append(rounded(np.clip(tensor, -most, most), most, 1, rng))
        return {":trits": pack(np.concatenate(trits), 1), ":scales": np.array(scales)}

    def read(self, arrays: Mapping[str, Array]) -> np.ndarray:
        scales = np.repeat(np.asarray(arrays[":scales"]).astype(self._type), self._sizes)
        scales *= unpack(np.asarray(arrays[":trits"]), self._size, 1, ":trits")
        return scales
