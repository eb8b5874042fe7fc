"""What a party may do to what it sends: noise on each row of activations or gradients, and labels told at random.

    activations  a ← a·min(1, C/‖a‖) + σ·N(0, I),  σ = z·2C       at a feature owner, after its bottom half
    gradients    the same on the gradient of each row              at the label owner, before it goes back
    labels       y with probability e^ε/(e^ε + k − 1), else one of the other k − 1 classes      once, before training

Randomised labels protect labels whatever is computed from them, and ε says how well. Noise on rows does less than its
name: it bounds what one row shows to whoever knows the half that made it. While that half is still being trained it
remembers other rows' data, so the rows of a whole run have no ε, and none is given.

All noise is from the operating system, never from the run's seed, which every party knows.

Sources: Warner 1965, https://doi.org/10.1080/01621459.1965.10480775; Ghazi et al. 2021, Deep Learning with Label
Differential Privacy, https://arxiv.org/abs/2102.06062; Li et al. 2022, Label Leakage and Protection in Two-party Split
Learning, https://arxiv.org/abs/2102.08504; Balle and Wang 2018, https://arxiv.org/abs/1805.06530
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from hansa.core.errors import DataError, require
from hansa.core.ledger import Event
from hansa.core.sampling import Stream
from hansa.privacy.accountant import LOCAL, cost
from hansa.privacy.noise import Deviates, add_noise


@dataclass(frozen=True)
class RowNoise:
    """Each row scaled to an L2 norm of at most `clip`, then normal noise of `noise_multiplier`·2·`clip`.

    Args:
      clip: C, the longest row that is sent, over all its numbers; above 0.
      noise_multiplier: z, standard deviations per unit of 2C, by which one row can differ from another; 0 for none.
    """

    clip: float
    noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        require(self.clip > 0 and math.isfinite(self.clip), f"clip={self.clip}: the bound of a row is above 0.")
        fault = f"noise_multiplier={self.noise_multiplier}: it is finite and not negative."
        require(self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier), fault)

    def clipped(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of any shape, none longer than C; autograd goes through it."""
        norms = rows.flatten(1).norm(dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
        return rows * (self.clip / norms).clamp_max(1.0).reshape(-1, *[1] * (rows.dim() - 1))

    def noisy(self, rows: torch.Tensor, deviates: Deviates) -> torch.Tensor:
        """Clipped rows with noise; constants to autograd."""
        sent = rows.detach().clone(memory_format=torch.contiguous_format)
        if self.noise_multiplier:
            add_noise(sent.numpy(), self.noise_multiplier * 2 * self.clip, deviates)
        return sent

    def epsilon(self, delta: float, releases: int = 1) -> float:
        """What rows that one person sends so often cost together, the half that makes them being fixed: infinity
        without noise.

        Args:
          delta: δ, well below 1 / rows.
          releases: how often the same person's row is sent: epochs, and predictions.
        """
        if not self.noise_multiplier:
            return math.inf
        event = Event(mechanism=LOCAL + "gaussian", noise_multiplier=self.noise_multiplier)
        return float(cost(Counter({event: releases}), delta))


@dataclass(frozen=True)
class RandomisedResponse:
    """Labels that are each replaced, once, by another class with a stated probability.

    Args:
      epsilon: ε of label differential privacy: neighbours differ in one person's label; above 0.
      classes: k, at least 2; labels are 0 … k − 1.

    Guarantees:
      Everything that is computed from the replaced labels (gradients, models, metrics) has that ε, with δ = 0, for
      each label of a person who is in the data once.
    """

    epsilon: float
    classes: int

    def __post_init__(self) -> None:
        # Beyond that, 53 bits cannot tell a label that is hardly ever replaced from one that never is.
        require(0 < self.epsilon <= 30, f"epsilon={self.epsilon}: it lies above 0, and is at most 30.")
        require(self.classes >= 2, f"classes={self.classes}: at least 2 are needed.")

    @property
    def kept(self) -> float:
        """The probability that a label stays what it is."""
        return 1 / (1 + (self.classes - 1) * math.exp(-self.epsilon))

    def replaced(self, labels: torch.Tensor, stream: Stream) -> torch.Tensor:
        """Labels of the same shape and dtype.

        Raises:
          DataError: a label is none of the classes.
        """
        given = labels.numpy().reshape(-1)
        values = given.astype(np.int64)
        if (values != given).any() or ((values < 0) | (values >= self.classes)).any():
            raise DataError(f"randomised labels are whole numbers from 0 to {self.classes - 1}: encode them so.")
        # Of 53 bits each: whether it stays, and by how far round the circle of classes it moves.
        stays, step = (stream.words(2 * len(values)) >> np.uint64(11)).reshape(2, -1) * 2.0**-53
        other = (values + 1 + np.floor(step * (self.classes - 1)).astype(np.int64)) % self.classes
        moved = np.where(stays < self.kept, values, other)
        return torch.from_numpy(moved).reshape(labels.shape).to(labels.dtype)

    def corrected(self, rate: float) -> float:
        """An unbiased estimate of the accuracy on true labels, of two classes or more, from that on replaced ones."""
        wrong = (1 - self.kept) / (self.classes - 1)
        return (rate - wrong) / (self.kept - wrong)
