"""Split learning: what is public of it, which every party states alike.

    shop   x₁ ─ bottom ─┐ activations
                        ├──────────────► cloud ─ middle ─► bank ─ top ─ loss with y
    bank   x₂ ─ bottom ─┘ ◄──────────────────── gradients ◄──────────────┘

Features stay with the owners of the bottoms, labels with the owner of the top, each half with its party. Where the
owner of a bottom also owns the top (`bottoms=("clinic",), middles=("cloud",), top="clinic"`) the network is folded like
a U, and whoever computes the middle sees neither features nor labels.

With no protection and one micro-batch, the halves are bit for bit what the whole network would be after the same
batches in one process; with several micro-batches, what it would be if gradients were added up over them.

Sources: Gupta and Raskar 2018, Distributed learning of deep neural network over multiple agents,
https://arxiv.org/abs/1810.06060; Vepakomma et al. 2018, Split learning for health, https://arxiv.org/abs/1812.00564
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hansa.core.errors import ConfigError, require
from hansa.core.runtime import Mesh
from hansa.vertical.learns import Learns
from hansa.vertical.split.protection import RandomisedResponse, RowNoise

if TYPE_CHECKING:
    from hansa.vertical.split.party import SplitParty

# Pieces that are sent before any is read: so many of 64 KB, which links send at once, fit into what sockets hold, and
# larger ones wait in memory; with more, two parties could wait for each other to read.
MOST_PIECES = 8

JOINS: Mapping[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "concatenate": lambda parts: torch.cat(parts, 1),
    "sum": lambda parts: torch.stack(parts).sum(0),
}


@dataclass(frozen=True, kw_only=True)
class SplitLearning:
    """Who has which layers, and how they train; the same at every party.

    Args:
      bottoms: owners of features, each with a bottom half, in the order in which their activations are joined.
      middles: parties on the way, each with layers of its own; a name may occur more than once.
      top: the owner of the labels, who has the last layers and computes the loss.
      batch_size: rows a step.
      epochs: passes over all rows.
      micro_batches: 1 to 8, pieces of a batch that are under way at the same time, so that parties compute while the
        results of others travel; their gradients are added up. Batch norm sees pieces.
      seed: of the public order of rows.
      join: of several bottoms' activations: `concatenate` along axis 1, or `sum`.
      activations: protection of what feature owners other than the label owner send.
      gradients: protection of what the label owner sends back.
      labels: protection of labels, applied once, before training.
      checkpoint_every: batches between checkpoints, if the parties keep any; 0 for one after each epoch.

    Raises:
      ConfigError: an argument is out of its range.
    """

    bottoms: tuple[str, ...]
    top: str
    middles: tuple[str, ...] = ()
    batch_size: int = 256
    epochs: int = 1
    micro_batches: int = 1
    seed: int = 0
    join: str = "concatenate"
    activations: RowNoise | None = None
    gradients: RowNoise | None = None
    labels: RandomisedResponse | None = None
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        require(bool(self.bottoms), "bottoms=(): name at least one owner of features.")
        twice = sorted({name for name in self.bottoms if self.bottoms.count(name) > 1})
        require(not twice, f"bottoms: {twice} occur twice: one bottom half takes all columns of its owner.")
        for name in ("batch_size", "epochs", "micro_batches"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1 is needed.")
        fault = f"micro_batches={self.micro_batches}: at most {MOST_PIECES} are under way at the same time."
        require(self.micro_batches <= MOST_PIECES, fault)
        fault = f"micro_batches={self.micro_batches} > batch_size={self.batch_size}: a piece needs a row."
        require(self.micro_batches <= self.batch_size, fault)
        require(self.checkpoint_every >= 0, f"checkpoint_every={self.checkpoint_every}: 0, or a number of batches.")
        require(self.join in JOINS, f"join='{self.join}': choose one of {', '.join(JOINS)}.")
        alone = self.activations and set(self.bottoms) == {self.top} and not self.middles
        require(not alone, "activations: nothing is sent, so there is nothing to protect: leave it out.")
        for index, (sender, receiver) in enumerate(itertools.pairwise(self.chain)):
            require(sender != receiver, f"'{sender}' has the layers {index} and {index + 1} in a row: make them one.")

    @property
    def chain(self) -> tuple[str, ...]:
        """Owners of what follows the bottoms; the last has the labels."""
        return (*self.middles, self.top)

    @property
    def parties(self) -> tuple[str, ...]:
        """Everybody who takes part, sorted."""
        return tuple(sorted({*self.bottoms, *self.chain}))

    def order(self, rows: int, epoch: int) -> np.ndarray:
        """Row numbers in the public order of one epoch: shape (rows,)."""
        return np.random.default_rng([self.seed, epoch]).permutation(rows)

    def batches(self, rows: int, epoch: int) -> Iterator[np.ndarray]:
        """Row numbers of each batch; the last may be smaller."""
        order = self.order(rows, epoch)
        for at in range(0, rows, self.batch_size):
            yield order[at : at + self.batch_size]

    def steps(self, rows: int) -> int:
        """Batches of an epoch."""
        return -(-rows // self.batch_size)

    def pieces(self, batch: np.ndarray) -> list[np.ndarray]:
        """The micro-batches of a batch."""
        return [piece for piece in np.array_split(batch, self.micro_batches) if len(piece)]

    def settings(self) -> dict[str, Any]:
        """All of it as plain values, which parties compare before they start."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def learns(self) -> Learns:
        """What each party learns while training, and how what it is sent is protected."""
        found: dict[str, list[str]] = {name: [] for name in self.parties}
        for name in self.parties:
            found[name].append("how many rows all share, their public order, and which batch is being trained")
        first = self.chain[0]
        for sender in self.bottoms:
            if sender != first:
                found[first].append(self._of_activations(sender))
            if sender != self.top:
                told = "the gradient of the loss at each row of its activations, from which labels can often be guessed"
                found[sender].append(told + self._of_labels())
        for sender, receiver in itertools.pairwise(self.chain):
            found[receiver].append(f"the activations of {sender}'s layers, row by row")
            told = "the gradient of the loss at each row of its layers' outputs, from which labels can often be guessed"
            if sender != self.top:
                found[sender].append(told + self._of_labels())
        found[self.top].append("the loss; outputs of predictions, which go to nobody else")
        return found

    def _of_activations(self, sender: str) -> str:
        told = f"the activations of {sender}'s bottom half, row by row, from which features can be rebuilt in part"
        if self.activations is None:
            return told + "; unprotected"
        noise = self.activations
        return told + f"; rows clipped to {noise.clip:g}, noise of {noise.noise_multiplier:g} times twice that"

    def _of_labels(self) -> str:
        told = ""
        if self.gradients is not None:
            clip, multiplier = self.gradients.clip, self.gradients.noise_multiplier
            told += f"; rows clipped to {clip:g}, noise of {multiplier:g} times twice that"
        if self.labels is not None:
            told += f"; labels were randomised before: ε = {self.labels.epsilon:g} for each label, for all of training"
        return told or "; unprotected"

    def part(self, mesh: Mesh, **given: Any) -> "SplitParty":
        """This party's part; see `SplitParty` for the arguments.

        Raises:
          ConfigError: this party's modules do not fit its places, or the mesh lacks a party.
        """
        from hansa.vertical.split.party import SplitParty

        return SplitParty(self, mesh, **given)


def pieces(network: torch.nn.Sequential, *cuts: int) -> list[torch.nn.Sequential]:
    """A network's consecutive parts, which share its parameters: cut before the children of these numbers.

    >>> [len(piece) for piece in pieces(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), 1)]
    [1, 1]
    """
    edges = [0, *cuts, len(network)]
    if edges != sorted(set(edges)):
        raise ConfigError(f"cuts={cuts}: give increasing places between 1 and {len(network) - 1}.")
    return [network[low:high] for low, high in itertools.pairwise(edges)]
