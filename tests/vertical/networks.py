"""Small networks, generated rows, and what the whole of a split network would have become."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from hansa.vertical.split import SplitLearning
from hansa.vertical.split.plan import JOINS

CLASSES = 3


def rows(count: int = 90, columns: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and classes that a small network can tell apart."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, columns)).astype(np.float32)
    y = (x[:, :CLASSES] + x[:, columns // 2 : columns // 2 + CLASSES]).argmax(1)
    return torch.from_numpy(x), torch.from_numpy(y)


def layers(seed: int, *sizes: int) -> nn.Sequential:
    """Linear layers with a tanh between them; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    made: list[nn.Module] = []
    for at, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5)
            layer.bias.zero_()
        made += [nn.Tanh(), layer] if at else [layer]
    return nn.Sequential(*made)


class Whole(nn.Module):
    """All halves in one process."""

    def __init__(self, bottoms: Sequence[nn.Module], chain: Sequence[nn.Module], join: str = "concatenate") -> None:
        super().__init__()
        self.bottoms, self.chain, self.join = nn.ModuleList(bottoms), nn.Sequential(*chain), join

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        parts = [bottom(x) for bottom, x in zip(self.bottoms, features, strict=True)]
        joined = parts[0] if len(parts) == 1 else JOINS[self.join](parts)
        outputs: torch.Tensor = self.chain(joined)
        return outputs


def train_whole(
    whole: Whole,
    plan: SplitLearning,
    features: Sequence[torch.Tensor],
    y: torch.Tensor,
    optimiser: torch.optim.Optimizer,
) -> list[float]:
    """What the plan would do if nothing were cut; the loss of each epoch."""
    losses = []
    for epoch in range(plan.epochs):
        total = 0.0
        for batch in plan.batches(len(y), epoch):
            loss_of_batch = 0.0
            for piece in plan.pieces(batch):
                index = torch.from_numpy(piece)
                loss = nn.functional.cross_entropy(whole(*(x[index] for x in features)), y[index])
                if len(piece) != len(batch):
                    loss = loss * (len(piece) / len(batch))
                loss.backward()
                loss_of_batch += float(loss.detach())
            optimiser.step()
            optimiser.zero_grad()
            total += loss_of_batch * len(batch)
        losses.append(total / len(y))
    return losses
