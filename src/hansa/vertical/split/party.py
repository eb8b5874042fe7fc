"""One party's part in split learning: its halves, and the order in which it computes, sends and waits.

    a batch, three pieces        bottom   f₀ f₁ f₂ · · b₀ b₁ b₂ step
                                 top         t₀ t₁ t₂ · · · · · step          t: forward, loss and backward at once

Nobody waits before it has sent all it can: a bottom computes all its pieces before it takes the first gradient. Each
link carries the pieces of one place in order, place after place, so that what arrives next is known, and checked.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from hansa.core.errors import ConfigError, DataError, TrainingFailed, require
from hansa.core.runtime import Mesh
from hansa.privacy.noise import Normals, own_stream
from hansa.vertical.learns import statement
from hansa.vertical.split.agree import agree
from hansa.vertical.split.message import packed, unpacked
from hansa.vertical.split.plan import JOINS, SplitLearning
from hansa.vertical.split.protection import RowNoise
from hansa.vertical.split.state import Position, States, load_half, save_half
from hansa.vertical.table import AlignedTable

Features: TypeAlias = AlignedTable | np.ndarray | torch.Tensor | tuple[torch.Tensor, ...]
Optimiser: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
_AHEAD = 8  # batches that are predicted before their receiver must have taken them; see MOST_PIECES


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Plain gradient descent at a rate of 0.1."""
    return torch.optim.SGD(parameters, lr=0.1)


@dataclass(frozen=True)
class Epoch:
    """What one epoch was.

    Args:
      number: from 0.
      loss: mean over its rows, at the label owner; None at the others.
      seconds: it took.
    """

    number: int
    loss: float | None
    seconds: float


@dataclass
class _Place:
    """Layers of this party, and what of a batch is under way in them."""

    module: nn.Module
    senders: tuple[str, ...]  # of its inputs; none at a bottom
    receiver: str  # of its outputs; empty at the top
    index: int  # 0 for bottoms, then along the chain
    inputs: list[list[torch.Tensor]] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class SplitParty:
    """This party's halves; `fit`, `predict` and `evaluate` are called by all parties, with the same number of rows.

    Args:
      plan: the same at all parties.
      mesh: links to them.
      bottom: this party's bottom half: features to activations, row by row along axis 0.
      middles: its layers on the way, in the plan's order.
      top: the last layers, whose outputs the loss takes.
      loss: (outputs, labels) to the mean over rows, at the label owner.
      optimiser: of this party's parameters, or what makes one of them.
      folder: where checkpoints are kept, and training is resumed from; None keeps none.
      announce: is told, before training, what each party learns.

    Raises:
      ConfigError: modules are missing, or given where the plan has no place for them.
    """

    def __init__(
        self, plan: SplitLearning, mesh: Mesh, *, bottom: nn.Module | None = None, middles: Sequence[nn.Module] = (),
        top: nn.Module | None = None, loss: Callable[[torch.Tensor, Any], torch.Tensor] | None = None,
        optimiser: Optimiser | torch.optim.Optimizer = sgd, folder: str | Path | None = None,
        announce: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self.plan, self.mesh, self.me = plan, mesh, mesh.me
        self._loss, self._announce = loss, announce
        absent = sorted(set(plan.parties) - {mesh.me, *mesh.peers})
        require(not absent, f"the parties {absent} of the plan are not in this mesh: {(mesh.me, *mesh.peers)}.")
        require(self.me in plan.parties, f"'{self.me}' has no place in the plan of {', '.join(plan.parties)}.")
        self._check(bottom, middles, top)
        self._places = self._arranged(bottom, list(middles), top)
        self.halves = nn.ModuleDict({_name(plan, place.index): place.module for place in self._places})
        parameters = [each for each in self.halves.parameters() if each.requires_grad]
        self._optimiser: torch.optim.Optimizer | None = None
        if isinstance(optimiser, torch.optim.Optimizer):
            self._optimiser = optimiser
        elif parameters:
            self._optimiser = optimiser(parameters)
        self._states = States(folder, self.me) if folder is not None else None
        self._here: deque[torch.Tensor] = deque()  # from one place of this party to the next
        self._deviates = Normals(own_stream())
        self._randomised: tuple[torch.Tensor, torch.Tensor] | None = None  # labels, and what they became

    # -- what all parties call

    def fit(self, x: Features | None = None, y: Any = None) -> list[Epoch]:
        """Trains all epochs of the plan, or what is left of them after the last checkpoint that all parties have.

        Args:
          x: features, at owners of bottoms; several tensors are handed to the module in order.
          y: labels, at the label owner; one for each row.

        Raises:
          ConfigError: parties state other settings, or tables of other alignments.
          StateMismatch: checkpoints are of another run, or no checkpoint is held by all.
          Unreachable: a party is lost; the last checkpoint stays.
          TrainingFailed: the loss is not finite.
        """
        features, labels, alignment = _features(x), None if y is None else _tensor(y), _alignment(x)
        keeps = self._states is not None
        facts = {"task": "train", "checkpoints": keeps, **alignment}
        rows = agree(self.mesh, self.plan, facts, self._rows(features, labels))
        require(rows > 0, "there are no rows to train on.")
        self._announce(statement("Split learning", self.plan.learns()))
        start, labels = self._begin(rows, labels)
        self.halves.train()
        told = []
        for epoch in range(start.epoch, self.plan.epochs):
            told.append(self._epoch(epoch, start, rows, features, labels))
        return told

    def predict(self, x: Features | None = None) -> torch.Tensor | None:
        """Outputs for each row, at the label owner alone; None at the others. Modules are in evaluation mode."""
        features, alignment = _features(x), _alignment(x)
        rows = agree(self.mesh, self.plan, {"task": "predict", **alignment}, self._count(features))
        batches = [np.arange(at, min(at + self.plan.batch_size, rows)) for at in range(0, rows, self.plan.batch_size)]
        self.halves.eval()
        outputs = []
        with torch.no_grad():
            for at in range(0, len(batches), _AHEAD):
                group = batches[at : at + _AHEAD]
                self._forward(group, features)
                top = self._top
                if top is not None:
                    for number, piece in enumerate(group):
                        inputs = self._take(top, number, len(piece))
                        outputs.append(top.module(self._joined(inputs)))
                self._taken()
        if self._top is None:
            return None
        return torch.cat(outputs) if outputs else torch.empty(0)

    def evaluate(
        self, x: Features | None = None, y: Any = None, measures: dict[str, Callable[..., float]] | None = None
    ) -> dict[str, float] | None:
        """Loss, and further measures of (outputs, labels), at the label owner alone.

        Args:
          x: features, at owners of bottoms.
          y: labels, at the label owner.
          measures: name to function.
        """
        outputs = self.predict(x)
        if outputs is None:
            return None
        labels = _tensor(y)
        assert self._loss is not None
        found = {"loss": float(self._loss(outputs, labels))}
        return found | {name: float(measure(outputs, labels)) for name, measure in (measures or {}).items()}

    def save(self, path: str | Path) -> None:
        """This party's halves as a safetensors file; the whole network is in no file of anybody."""
        save_half(path, self.halves, self.plan)

    def load(self, path: str | Path) -> None:
        """Halves that `save` wrote.

        Raises:
          CorruptFile: it is no such file.
          StateMismatch: its tensors are of other modules.
        """
        load_half(path, self.halves)

    # -- an epoch

    def _begin(self, rows: int, labels: Any) -> tuple[Position, Any]:
        """Where to start, and the labels to train on."""
        if labels is not None and self.plan.labels is not None:
            # Once randomised, always the same: a second draw would cost ε again.
            if self._randomised is None or not torch.equal(self._randomised[0], labels):
                self._randomised = labels.clone(), self.plan.labels.replaced(labels, own_stream())
            labels = self._randomised[1]
        if self._states is None:
            return Position(), labels
        return self._states.resume(self.mesh, self.plan, rows, self.halves, self._optimiser, labels)

    def _epoch(self, epoch: int, start: Position, rows: int, features: Any, labels: Any) -> Epoch:
        begun, resumed = time.monotonic(), epoch == start.epoch
        total = start.loss if resumed else 0.0
        first = start.batch if resumed else 0
        count = self.plan.steps(rows)
        for number, batch in enumerate(self.plan.batches(rows, epoch)):
            if number < first:
                continue
            total += self._step(batch, features, labels) * len(batch)
            every = self.plan.checkpoint_every or count
            if self._states is not None and ((number + 1) % every == 0 or number + 1 == count):
                at = Position(epoch, number + 1, total) if number + 1 < count else Position(epoch + 1, 0, 0.0)
                self._states.commit(at, self.halves, self._optimiser, labels, self.plan, rows)
        return Epoch(epoch, total / rows if self._top is not None and rows else None, time.monotonic() - begun)

    def _step(self, batch: np.ndarray, features: Any, labels: Any) -> float:
        """One batch: forward, loss, backward, step; the loss at the label owner, 0 elsewhere."""
        pieces = self.plan.pieces(batch)
        self._forward(pieces, features)
        total = 0.0
        if self._top is not None:
            for number, piece in enumerate(pieces):
                total += self._turn(self._top, number, piece, len(batch), labels)
        for place in reversed(self._places):
            if place is not self._top:
                for number in range(len(pieces)):
                    self._backward(place, number)
        if self._optimiser is not None:
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
        if not np.isfinite(total):
            raise TrainingFailed(f"the loss became {total}: lower a learning rate, and go on from a checkpoint.")
        return total

    # -- forward

    def _forward(self, pieces: Sequence[np.ndarray], features: Any) -> None:
        """All places but the top, each with all pieces before the next begins."""
        self._here.clear()
        for place in self._places:
            place.inputs.clear()
            place.outputs.clear()
        for place in self._places:
            if place is self._top:
                continue
            for number, piece in enumerate(pieces):
                if place.index == 0:
                    index = torch.from_numpy(piece)
                    output = place.module(*(each[index].to(_device(place.module)) for each in features))
                else:
                    output = place.module(self._joined(self._take(place, number, len(piece))))
                self._give(place, number, output)

    def _give(self, place: _Place, number: int, output: torch.Tensor) -> None:
        noise = self.plan.activations
        if place.receiver == self.me:
            place.outputs.append(output)
            self._here.append(output.detach())
            return
        if place.index == 0 and noise is not None:
            output = noise.clipped(output)
            sent = noise.noisy(output, self._deviates)
        else:
            sent = output
        place.outputs.append(output)
        self.mesh.send(place.receiver, f"activations/{place.index}/{number}", packed(sent))

    def _take(self, place: _Place, number: int, rows: int) -> list[torch.Tensor]:
        """One piece of every input of a place, as leaves whose gradients are asked for."""
        taken = []
        for sender in place.senders:
            if sender == self.me:
                made = self._here.popleft()
            else:
                tag = f"activations/{place.index - 1}/{number}"
                made = unpacked(self.mesh.recv(sender, tag), sender, "activations", rows, place.shapes.get(sender))
                place.shapes[sender] = tuple(made.shape[1:])
            taken.append(made.to(_device(place.module)).requires_grad_(torch.is_grad_enabled()))
        place.inputs.append(taken)
        return taken

    def _joined(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return inputs[0] if len(inputs) == 1 else JOINS[self.plan.join](inputs)

    # -- backward

    def _turn(self, top: _Place, number: int, piece: np.ndarray, batch: int, labels: Any) -> float:
        """Loss of one piece, and its gradients sent back."""
        inputs = self._take(top, number, len(piece))
        assert self._loss is not None
        loss = self._loss(top.module(self._joined(inputs)), labels[torch.from_numpy(piece)].to(_device(top.module)))
        if len(piece) != batch:
            loss = loss * (len(piece) / batch)
        loss.backward()
        for sender, leaf in zip(top.senders, inputs, strict=True):
            self._return(top, sender, number, leaf, self.plan.gradients, batch)
        return float(loss.detach())

    def _backward(self, place: _Place, number: int) -> None:
        output = place.outputs[number]
        if place.receiver == self.me:
            gradient = self._here.popleft()
        else:
            tag = f"gradients/{place.index + 1}/{number}"
            given = self.mesh.recv(place.receiver, tag)
            shape = tuple(output.shape)
            gradient = unpacked(given, place.receiver, "gradients", shape[0], shape[1:])
        if output.requires_grad:
            output.backward(gradient.to(output))
        for sender, leaf in zip(place.senders, place.inputs[number] if place.senders else (), strict=True):
            self._return(place, sender, number, leaf, None, 1)

    def _return(
        self, place: _Place, sender: str, number: int, leaf: torch.Tensor, noise: RowNoise | None, batch: int
    ) -> None:
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        if sender == self.me:
            self._here.append(gradient)
            return
        if noise is not None:
            # In the unit of one row's own loss, of which the gradient of the mean has 1/batch.
            gradient = noise.noisy(noise.clipped(gradient.cpu() * batch), self._deviates) / batch
        self.mesh.send(sender, f"gradients/{place.index}/{number}", packed(gradient))

    def _taken(self) -> None:
        """The label owner says that it has a group of predictions, so that nobody runs far ahead of it."""
        others = [name for name in self.plan.bottoms if name != self.plan.top]
        if self.me == self.plan.top:
            for name in others:
                self.mesh.send(name, "taken", [b""])
        elif self.me in others:
            self.mesh.recv(self.plan.top, "taken")

    # -- beginning

    @property
    def _top(self) -> _Place | None:
        return self._places[-1] if self._places[-1].receiver == "" else None

    def _check(self, bottom: Any, middles: Sequence[Any], top: Any) -> None:
        plan, me = self.plan, self.me
        for what, given, wanted in (
            ("bottom", bottom is not None, me in plan.bottoms),
            ("top", top is not None, me == plan.top),
            ("loss", self._loss is not None, me == plan.top),
        ):
            remedy = "has one in the plan: give it" if wanted else "has none in the plan: leave it out"
            require(given == wanted, f"{what}: '{me}' {remedy}.")
        count = plan.middles.count(me)
        require(len(middles) == count, f"middles: {len(middles)} given, but '{me}' has {count} in the plan.")

    def _arranged(self, bottom: nn.Module | None, middles: list[nn.Module], top: nn.Module | None) -> list[_Place]:
        """This party's places along the way of a batch."""
        plan = self.plan
        places = [] if bottom is None else [_Place(bottom, (), plan.chain[0], 0)]
        for at, owner in enumerate(plan.chain, 1):
            if owner == self.me:
                senders = plan.bottoms if at == 1 else (plan.chain[at - 2],)
                last = at == len(plan.chain)
                module = top if last else middles.pop(0)
                assert module is not None
                places.append(_Place(module, senders, "" if last else plan.chain[at], at))
        return places

    def _count(self, features: Any) -> int | None:
        if self.me in self.plan.bottoms and features is None:
            raise ConfigError(f"x: '{self.me}' has a bottom half: give it its features.")
        return None if features is None else len(features[0])

    def _rows(self, features: Any, labels: Any) -> int | None:
        count = self._count(features)
        if (self.me == self.plan.top) != (labels is not None):
            remedy = "give them" if self.me == self.plan.top else "leave them out"
            raise ConfigError(f"y: the labels are those of '{self.plan.top}': {remedy} at '{self.me}'.")
        if labels is not None and count is not None and len(labels) != count:
            raise DataError(
                f"'{self.me}' has {count} rows of features and {len(labels)} labels: they must be the same."
            )
        return count if count is not None else None if labels is None else len(labels)


def _name(plan: SplitLearning, index: int) -> str:
    return "bottom" if index == 0 else "top" if index == len(plan.chain) else f"middle-{index}"


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _features(x: Any) -> tuple[torch.Tensor, ...] | None:
    if x is None:
        return None
    if isinstance(x, AlignedTable):
        x = x.matrix().astype(np.float32)
    parts = tuple(_tensor(each) for each in x) if isinstance(x, tuple | list) else (_tensor(x),)
    for part in parts:
        if part.is_floating_point() and not torch.isfinite(part).all():
            raise DataError("x has missing or infinite numbers: fill them in first.")
    return parts


def _tensor(values: Any) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def _alignment(x: Any) -> dict[str, str]:
    return {"alignment": x.alignment.hex()} if isinstance(x, AlignedTable) else {}
