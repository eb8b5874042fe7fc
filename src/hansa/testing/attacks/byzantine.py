"""Liars who send something else than they computed: zeros, noise, the opposite, too much, or a copy.

own        SignFlip  −s·x        Scaled  s·x        Zero  0        Noise  a random direction of length s·‖x‖
others'    ALittle   mean − z·σ  InnerProduct  −ε·mean             Lazy   another's, with noise
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from hansa.core.tensors import Tensors
from hansa.testing.attacks.adversary import Attack, altered


@dataclass(frozen=True)
class SignFlip(Attack):
    """The opposite of what was computed, `scale` times as long. Source: Li et al. 2019, https://arxiv.org/abs/1811.03761"""

    scale: float = 1.0

    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """−s·x."""
        return [altered(message, lambda name, x: -self.scale * x) for message in own]


@dataclass(frozen=True)
class Scaled(Attack):
    """What was computed, `factor` times as long.

    With data poisoned by a backdoor and factor n / liars it is model replacement: the mean becomes the liars' model.

    Source: Bagdasaryan et al. 2020, How To Backdoor Federated Learning, https://arxiv.org/abs/1807.00459
    """

    factor: float

    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """s·x."""
        return [altered(message, lambda name, x: self.factor * x) for message in own]


@dataclass(frozen=True)
class Zero(Attack):
    """Zeros: a client that takes the model and gives nothing."""

    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """0."""
        return [altered(message, lambda name, x: np.zeros_like(x)) for message in own]


@dataclass(frozen=True)
class Noise(Attack):
    """A random direction, each tensor `scale` times as long as the one that was computed."""

    scale: float = 1.0

    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """Gaussian noise of the given length."""

        def drawn(name: str, x: np.ndarray) -> np.ndarray:
            noise = rng.standard_normal(x.shape)
            return noise * (self.scale * np.linalg.norm(x) / max(float(np.linalg.norm(noise)), 1e-300))

        return [altered(message, drawn) for message in own]


@dataclass(frozen=True)
class Lazy(Attack):
    """A copy of an honest client's message with noise of `std` times its spread: work that was never done.

    Source: Li et al. 2020, Blockchain Assisted Decentralized Federated Learning (BLADE-FL) with Lazy Clients,
    https://arxiv.org/abs/2012.02044
    """

    std: float = 0.01

    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """Each liar copies one of the others at random; alone it sends its own."""
        copied = [others[int(rng.integers(len(others)))] if others else message for message in own]
        return [
            altered(message, lambda name, x: x + self.std * x.std() * rng.standard_normal(x.shape))
            for message in copied
        ]


@dataclass(frozen=True)
class ALittle(Attack):
    """A little is enough: in each coordinate the honest mean, moved by z of their standard deviations.

    Args:
      z: None takes the largest that still has enough honest ones further out to pass for one of them: with m liars of
        n, Φ(z) = (n − m − s) / (n − m), s = ⌊n/2⌋ + 1 − m.

    Source: Baruch, Baruch and Goldberg 2019, A Little Is Enough, https://arxiv.org/abs/1902.06156
    """

    z: float | None = None

    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """The same message from every liar."""
        honest = others or own
        z = self.z if self.z is not None else z_max(len(own) + len(others), len(own))

        def moved(name: str, x: np.ndarray) -> np.ndarray:
            rows = np.stack([np.asarray(message[name], np.float64) for message in honest])
            lie: np.ndarray = rows.mean(axis=0) - z * rows.std(axis=0)
            return lie

        return [altered(own[0], moved)] * len(own)


def z_max(clients: int, liars: int) -> float:
    """How many standard deviations `liars` of `clients` can move by; 0 if they are too few to move at all.

    >>> round(z_max(50, 24), 3)
    1.426
    """
    honest = clients - liars
    share = (honest - (clients // 2 + 1 - liars)) / honest if honest else 1.0
    return max(0.0, NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1e-9)))


@dataclass(frozen=True)
class InnerProduct(Attack):
    """The opposite of the honest mean, `epsilon` times as long: small enough to pass, large enough to turn the sum.

    Source: Xie, Koyejo and Gupta 2019, Fall of Empires, https://arxiv.org/abs/1903.03936
    """

    epsilon: float = field(default=0.5)

    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """The same message from every liar."""
        honest = others or own

        def turned(name: str, x: np.ndarray) -> np.ndarray:
            rows = np.stack([np.asarray(message[name], np.float64) for message in honest])
            lie: np.ndarray = -self.epsilon * rows.mean(axis=0)
            return lie

        return [altered(own[0], turned)] * len(own)
