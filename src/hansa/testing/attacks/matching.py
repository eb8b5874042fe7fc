"""Inputs recovered from an update: guess them, compute the update they would give, and move them until it is the one
that was seen.

    DLG                  min ‖Δ(x, y) − Δ*‖²                         by L-BFGS, inputs and soft labels together
    InvertingGradients   min 1 − cos(Δ(x, y), Δ*) + α·TV(x)          by signs of Adam's gradient, labels known

Δ is what local training as `LocalWork` declares it does to the parameters: one full-batch step, or several, which are
computed through. The attacker has to know the number of examples and the shape of one; both often are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.adapters.torch import TorchModel
from hansa.adapters.torch_loss import Task, ready, task
from hansa.core.errors import MissingExtra, require
from hansa.core.model import LocalWork
from hansa.core.tensors import Tensors
from hansa.testing.attacks.labels import labels_of, last_bias

try:
    import torch
    from torch.func import functional_call
except ModuleNotFoundError as error:
    raise MissingExtra("gradient matching", "torch", "torch") from error


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a curious server has of one client, or of several if it sees no single ones.

    Args:
      model: a classifier with one input and a cross-entropy of logits.
      params: all tensors of the model that was sent.
      difference: what came back, of the trainable tensors.
      work: what the client was told to do: plain gradient descent on all its examples at once.
      examples: how many it has.
      shape: of one example.
      classes: of its labels.

    Raises:
      ConfigError: the model has another loss, or the work cannot be computed through.
    """

    model: TorchModel
    params: Tensors
    difference: Tensors
    work: LocalWork
    examples: int
    shape: tuple[int, ...]
    classes: int

    def __post_init__(self) -> None:
        work, batch = self.work, self.work.batch_size
        single = callable(self.model.loss) and task(self.model.loss) == Task.CLASSES and len(self.model.inputs) == 1
        require(single, "gradient matching needs a classifier with one input and F.cross_entropy or a kin of it.")
        plain = work.optimiser == "sgd" and not (work.momentum or work.weight_decay or work.proximal or work.dp)
        require(plain, "gradient matching computes through plain SGD: no Adam, momentum, decay, pull or dp.")
        whole = batch is None or batch >= self.examples
        require(
            whole, f"batch_size={batch} of {self.examples} examples: who was in which batch is the client's secret."
        )
        require(work.lr > 0, "lr=0: an update of zeros tells nothing.")

    @property
    def steps(self) -> int:
        """Steps of descent between what was sent and what came back."""
        return self.work.steps or self.work.epochs or 1

    def update(self) -> "Callable[[Any, Any], list[Any]]":
        """(x, y) to what local training on them gives, over −lr·steps: a gradient, if there was one step."""
        module = self.model.finish(self.params).train()
        start = {name: p.detach() for name, p in module.named_parameters()}
        buffers = {name: b.detach() for name, b in module.named_buffers()}
        names, loss = list(self.difference), ready(self.model.loss)

        def simulated(x: Any, y: Any) -> list[Any]:
            now = {**start, **{name: start[name].requires_grad_() for name in names}}
            for _ in range(self.steps):
                outputs = functional_call(module, {**now, **{n: b.clone() for n, b in buffers.items()}}, (x,))
                grads = torch.autograd.grad(loss(outputs, y), [now[name] for name in names], create_graph=True)
                now.update({n: now[n] - self.work.lr * g for n, g in zip(names, grads, strict=True)})
            return [(start[name] - now[name]) / (self.work.lr * self.steps) for name in names]

        return simulated

    def target(self) -> list[Any]:
        """What was seen, in the same unit."""
        scale = -1.0 / (self.work.lr * self.steps)
        return [torch.tensor(np.asarray(self.difference[name]) * scale) for name in self.difference]

    def labels(self) -> np.ndarray:
        """The labels as the last layer tells them."""
        change = self.difference[last_bias(self.difference, self.classes)]
        return labels_of(-np.asarray(change), self.examples)


@dataclass(frozen=True)
class Recovered:
    """What an attack came to.

    Args:
      x: shape (examples, ...).
      y: labels, shape (examples,).
      objective: how far the recovered inputs' update is from the one seen.
      iterations: of the attacker's optimiser, with those of restarts.
    """

    x: np.ndarray
    y: np.ndarray
    objective: float
    iterations: int

    def errors(self, truth: np.ndarray) -> np.ndarray:
        """For each true example the mean squared error of what comes nearest to it: shape (examples,)."""
        found, real = self.x.reshape(len(self.x), 1, -1), np.asarray(truth).reshape(1, len(truth), -1)
        nearest: np.ndarray = ((found - real) ** 2).mean(axis=2).min(axis=0)
        return nearest


class Matching(ABC):
    """An attack that makes updates match."""

    @abstractmethod
    def recover(self, seen: Seen) -> Recovered:
        """The inputs whose update is nearest to the one seen."""


@dataclass(frozen=True)
class DLG(Matching):
    """Deep leakage from gradients: inputs and labels by L-BFGS from noise. It needs a smooth network (no ReLU).

    Args:
      iterations: of L-BFGS, at the most, over all beginnings.
      restarts: beginnings, of which the best counts; the first that matches ends it.
      seed: of the noise they begin with.

    Source: Zhu, Liu and Han 2019, Deep Leakage from Gradients, https://arxiv.org/abs/1906.08935; with the line search
    of Wolfe's conditions, without which L-BFGS often runs away
    """

    iterations: int = field(default=3000, kw_only=True)
    restarts: int = field(default=4, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def recover(self, seen: Seen) -> Recovered:
        """The best of all beginnings."""
        update, target, used = seen.update(), seen.target(), 0
        length = sum(float((g**2).sum()) for g in target)
        generator, found = torch.Generator().manual_seed(self.seed), list[Recovered]()
        for left in range(self.restarts, 0, -1):
            x = torch.rand((seen.examples, *seen.shape), generator=generator).requires_grad_()
            y = torch.randn((seen.examples, seen.classes), generator=generator).requires_grad_()
            each = (self.iterations - used) // left
            objective, taken = _descend([x, y], lambda x, y: _apart(update(x, y.softmax(dim=1)), target), each)
            used += taken
            found.append(Recovered(x.detach().numpy(), y.detach().argmax(dim=1).numpy(), objective / length, used))
            if found[-1].objective < 1e-6:
                break
        best = min(found, key=lambda one: one.objective)
        return Recovered(best.x, best.y, best.objective, used)


@dataclass(frozen=True)
class InvertingGradients(Matching):
    """Inputs in a box whose update points where the one seen does; also for networks with ReLU.

    Args:
      iterations: of Adam; the rate falls tenfold after 3/8, 5/8 and 7/8 of them.
      lr: of the first ones, as a share of the box.
      tv: α, what roughness costs; images only.
      image: height and width of an example laid flat; None takes its last two axes, or no α if it has one.
      box: least and largest number of an input.
      seed: of the noise it begins with.

    Source: Geiping et al. 2020, Inverting Gradients, https://arxiv.org/abs/2003.14053
    """

    iterations: int = field(default=1000, kw_only=True)
    lr: float = field(default=0.05, kw_only=True)
    tv: float = field(default=1e-3, kw_only=True)
    image: tuple[int, int] | None = field(default=None, kw_only=True)
    box: tuple[float, float] = field(default=(0.0, 1.0), kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def recover(self, seen: Seen) -> Recovered:
        """What the signs of the gradient lead to, with the labels that the last layer tells."""
        update, target, labels = seen.update(), seen.target(), seen.labels()
        y = torch.tensor(labels)
        generator = torch.Generator().manual_seed(self.seed)
        low, width = self.box[0], self.box[1] - self.box[0]
        x = (low + width * torch.rand((seen.examples, *seen.shape), generator=generator)).requires_grad_()
        optimiser = torch.optim.Adam([x], lr=self.lr * width)
        falls = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, falls, gamma=0.1)
        objective = torch.tensor(float("inf"))
        for _ in range(self.iterations):
            objective = _turned(update(x, y), target)
            (slope,) = torch.autograd.grad(objective + self.tv / width * self._roughness(x), [x])
            x.grad = slope.sign()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                x.clamp_(*self.box)
        return Recovered(x.detach().numpy(), labels, float(objective.detach()), self.iterations)

    def _roughness(self, x: Any) -> Any:
        if self.image is None and x.ndim < 3:
            return 0.0
        flat = x.reshape(len(x), -1, *(self.image or x.shape[-2:]))
        return flat.diff(dim=-1).abs().mean() + flat.diff(dim=-2).abs().mean()


def _descend(unknown: Sequence[Any], objective: Callable[..., Any], iterations: int) -> tuple[float, int]:
    """Moves the unknowns by L-BFGS; the objective at the end, and the iterations taken."""
    optimiser = torch.optim.LBFGS(
        unknown, max_iter=iterations, max_eval=2 * iterations, tolerance_grad=0, tolerance_change=1e-12,
        history_size=100, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Any:
        value = objective(*unknown)
        for one, slope in zip(unknown, torch.autograd.grad(value, unknown), strict=True):
            one.grad = slope
        return value.detach()

    optimiser.step(closure)
    return float(closure()), int(optimiser.state[unknown[0]]["n_iter"])


def _apart(update: Sequence[Any], target: Sequence[Any]) -> Any:
    return sum(((a - b) ** 2).sum() for a, b in zip(update, target, strict=True))


def _turned(update: Sequence[Any], target: Sequence[Any]) -> Any:
    inner = sum((a * b).sum() for a, b in zip(update, target, strict=True))
    lengths = [sum((a**2).sum() for a in one).sqrt() for one in (update, target)]
    return 1 - inner / (lengths[0] * lengths[1])
