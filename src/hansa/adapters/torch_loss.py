"""What a PyTorch loss tells of its task: which metrics there are, and which form targets must have."""

import functools
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hansa.core.errors import ConfigError, DataError

Loss = Callable[[Any, Any], Any]


class Task(StrEnum):
    """What is predicted: a class of several, yes or no, or anything else."""

    CLASSES = "classes"
    BINARY = "binary"
    VALUES = "values"


_TASKS: dict[Any, Task] = {
    F.cross_entropy: Task.CLASSES,
    F.nll_loss: Task.CLASSES,
    nn.CrossEntropyLoss: Task.CLASSES,
    nn.NLLLoss: Task.CLASSES,
    F.binary_cross_entropy_with_logits: Task.BINARY,
    nn.BCEWithLogitsLoss: Task.BINARY,
}
_SAME_SHAPE = (
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss),
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss),
)


def carried(loss: Any) -> Any:
    """The loss in a form that a job can carry by name: instances as `nn.CrossEntropyLoss()` become their classes.

    Raises:
      ConfigError: it cannot be called, or it is an instance with settings of its own.
    """
    if callable(loss):
        return _carried(loss)
    pairs = [] if isinstance(loss, str) or not isinstance(loss, Sequence) else list(loss)
    if not pairs:
        raise ConfigError(f"loss={loss!r}: give a callable (outputs, targets) -> mean loss, as F.cross_entropy.")
    for pair in pairs:
        if not (
            isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], int | float) and callable(pair[1])
        ):
            raise ConfigError(f"loss part {pair!r}: give a pair (weight, callable).")
    return tuple((float(weight), _carried(one)) for weight, one in pairs)


def _carried(loss: Any) -> Any:
    if not isinstance(loss, nn.Module):
        return loss
    if not _as_built(loss):
        raise ConfigError(
            f"loss={loss} has settings of its own, which a job cannot carry: "
            "give functools.partial, as in partial(F.cross_entropy, label_smoothing=0.1)."
        )
    return type(loss)


def parts(loss: Any) -> list[tuple[float, Any]]:
    """(weight, callable) of every loss."""
    return [(1.0, loss)] if callable(loss) else [(pair[0], pair[1]) for pair in loss]


def ready(loss: Any) -> Loss:
    """One callable: loss classes are built, several losses become their weighted sum."""
    ones = [(weight, one() if isinstance(one, type) else one) for weight, one in parts(loss)]
    if len(ones) == 1 and ones[0][0] == 1.0:
        return ones[0][1]  # type: ignore[no-any-return]
    return lambda outputs, targets: sum(weight * one(outputs, targets) for weight, one in ones)


def rowwise(loss: Any) -> bool:
    """Whether a loss may be the mean of its rows' own: one that is told to weigh classes, or to ignore some, is not."""
    settings = {name for _, one in parts(loss) for name in getattr(one, "keywords", {})}
    return not settings & {"weight", "ignore_index", "reduction"}


def ignored(loss: Any) -> int:
    """The label that a loss of classes leaves out: PyTorch's -100, unless it is told another."""
    told = (getattr(one, "keywords", {}).get("ignore_index") for _, one in parts(loss))
    return next((int(label) for label in told if label is not None), -100)


def task(loss: Any) -> Task:
    """What the loss is for; a sum of losses counts as values, since its outputs may be several."""
    return _TASKS.get(_kind(loss), Task.VALUES) if callable(loss) else Task.VALUES


def check_shapes(loss: Any, outputs: Any, targets: Any) -> None:
    """Raises DataError where outputs and targets would broadcast against each other unnoticed."""
    elementwise = callable(loss) and (_kind(loss) in _SAME_SHAPE or task(loss) == Task.BINARY)
    if elementwise and torch.is_tensor(outputs) and torch.is_tensor(targets) and outputs.shape != targets.shape:
        raise DataError(
            f"outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}: "
            f"give the target column one shape with the outputs, as in y[:, None]."
        )


def check_loss(value: Any) -> None:
    """Raises ConfigError unless a loss can be minimised: one number that depends on what is trained."""
    kind = f"shape {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"
    if not torch.is_tensor(value) or value.numel() != 1:
        raise ConfigError(f"the loss gives {kind}: give its mean over the batch, one number, as reduction='mean' does.")
    if not value.requires_grad:
        raise ConfigError("the loss does not depend on any trained parameter: leave out detach() and no_grad().")


def correct(task: Task, outputs: Any, targets: Any) -> Any:
    """How many examples of a batch are right, as a 0-d tensor; None where the targets are no classes.

    Where an example has many targets (a sequence), it counts by the share of them that is right.
    """
    if task == Task.VALUES or not torch.is_tensor(outputs) or not torch.is_tensor(targets):
        return None
    if task == Task.BINARY:
        return ((outputs > 0) == (targets > 0.5)).sum() * (len(targets) / targets.numel())
    if targets.is_floating_point() or outputs.ndim != targets.ndim + 1:
        return None
    right = (outputs.argmax(1) == targets).sum()
    return right if targets.ndim == 1 else right * (len(targets) / targets.numel())


def _kind(loss: Any) -> Any:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return type(loss) if isinstance(loss, nn.Module) else loss


def _as_built(loss: Any) -> bool:
    try:
        fresh = type(loss)()
    except TypeError:
        return False
    plain = {name: one for name, one in vars(loss).items() if isinstance(one, bool | int | float | str | None)}
    return all(vars(fresh).get(name) == one for name, one in plain.items()) and not loss.state_dict()
