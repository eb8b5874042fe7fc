"""Losses. A loss's value needs logarithms that its gradient does not: they are computed when somebody asks for them."""

import functools
import math
from typing import Any

import torch

from hansa.mpc import functions
from hansa.mpc.fixed import Engine, Fixed, Later
from hansa.mpc.operations.nonlinear import probabilities
from hansa.mpc.operations.places import one_hot
from hansa.mpc.operations.wrap import engine_of, number, secret
from hansa.mpc.secret import SecretTensor, handles

aten = torch.ops.aten
_MEAN, _SUM = 1, 2


@handles(aten._log_softmax.default)
def log_softmax(x: SecretTensor, dim: int, half_to_float: bool = False) -> SecretTensor:
    """Numbers less their largest, less the logarithm of the sum of exponentials."""
    moved = x.value.map(lambda part: part.movedim(dim, -1))
    pieces = functools.cache(lambda: probabilities(moved))

    def compute() -> Fixed:
        _, centred, total = pieces()
        return (centred - functions.log(total)).map(lambda part: part.movedim(-1, dim))

    value = Later(x.value.engine, x.shape, compute)
    value.cached["softmax"] = lambda: pieces()[0].map(lambda part: part.movedim(-1, dim))
    return secret(value)


@handles(aten._log_softmax_backward_data.default)
def log_softmax_backward(grad: Any, output: SecretTensor, dim: int, dtype: torch.dtype) -> SecretTensor:
    """The gradient less probability times its sum."""
    value = output.value
    softmax = value.cached.get("softmax")
    share = softmax() if softmax is not None else functions.exp_below_zero(value)
    given = number(grad, value.engine)
    return secret(given - share * given.map(lambda part: part.sum(dim, keepdim=True)))


@handles(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def nll_loss_forward(
    x: Any, target: Any, weight: Any, reduction: int, ignore_index: int
) -> tuple[SecretTensor, torch.Tensor]:
    """Minus the entries of the right classes, times the classes' weights; and the weights' sum."""
    engine = engine_of(x, target, weight)
    given, classes = number(x, engine), _axis(x)
    chosen, total = _chosen(x, target, weight, ignore_index, engine)

    def compute() -> Fixed:
        picked = (given * chosen).map(lambda part: part.sum(classes))
        if reduction != _MEAN:
            return _reduced(-picked, reduction)
        return -picked.map(lambda part: part.sum()) * _inverse(total)

    loss = Later(engine, () if reduction else target.shape, compute)
    return secret(loss), torch.tensor(total) if isinstance(total, float) else secret(total)


@handles(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(
    grad: Any, x: Any, target: Any, weight: Any, reduction: int, ignore_index: int, total: Any
) -> SecretTensor:
    """Minus the weight at the right classes."""
    engine = engine_of(grad, x, target, weight)
    chosen, _ = _chosen(x, target, weight, ignore_index, engine)
    given = number(grad, engine) * -1
    if reduction == _MEAN:
        given = given * _inverse(total.value if isinstance(total, SecretTensor) else float(total))
    if not reduction:
        given = given.map(lambda part: part.unsqueeze(_axis(x)))
    return secret(chosen * given)


def _axis(x: Any) -> int:
    """Where the classes are: after the examples, of which there may be one alone."""
    return 0 if x.dim() == 1 else 1


def _chosen(x: Any, target: Any, weight: Any, ignored: int, engine: Engine) -> tuple[Fixed, float | Fixed]:
    """Each right class's weight at its place, else 0, in the shape of x; and the sum of all weights.

    A secret class that none of x's is, as -100, weighs nothing, but is counted: to look for it would cost a comparison
    and a division. One that is named by `ignored` is not counted.
    """
    classes, hidden = x.shape[_axis(x)], isinstance(target, SecretTensor)
    hot, count = _one_hot(target, classes, engine), float(target.numel())
    if not hidden:
        kept = target != ignored
        if bool((kept & ((target < 0) | (target >= classes))).any()):
            raise IndexError(f"cross_entropy: a target is none of {classes} classes, nor ignore_index={ignored}.")
        hot, count = hot * kept[..., None].to(torch.int64), float(kept.sum())
    some = 0 <= ignored < classes and hidden
    if weight is not None or some:
        factors = number(torch.ones(classes, dtype=torch.int64) if weight is None else weight, engine)
        hot = hot * (factors * (torch.arange(classes) != ignored).to(torch.int64) if some else factors)
    chosen = hot.map(lambda part: part.movedim(-1, _axis(x)))
    if weight is None and not some:
        return chosen, count
    total = hot.map(lambda part: part.sum())
    return chosen, total if total.public is None else float(total.public)


def _inverse(total: float | Fixed) -> float | Fixed:
    """1 over a sum of weights, which are positive."""
    if isinstance(total, Fixed):
        return functions.positive_reciprocal(total)
    return 1 / total


@handles(aten.binary_cross_entropy_with_logits.default)
def bce_with_logits(
    x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = _MEAN
) -> SecretTensor:
    """The larger of x and 0, less x·target, plus log(1 + exp(−|x|)); of positives times their weight."""
    engine = engine_of(x, target)
    value, wanted = number(x, engine), number(target, engine)

    def compute() -> Fixed:
        positive = value - value * value.negative()
        size = positive + positive - value
        softplus = functions.log(functions.exp_below_zero(-size) + 1.0)  # of −|x|
        if pos_weight is None:
            loss = positive - value * wanted + softplus
        else:
            heavier = (number(pos_weight, engine) - 1.0) * wanted + 1.0
            loss = value - value * wanted + heavier * (softplus + positive - value)
        return _reduced(loss if weight is None else loss * number(weight, engine), reduction)

    return secret(Later(engine, () if reduction else x.shape, compute))


@handles(aten.mse_loss.default)
def mse_loss(x: Any, target: Any, reduction: int = _MEAN) -> SecretTensor:
    """The squared distance."""
    engine = engine_of(x, target)
    a, b = number(x, engine), number(target, engine)

    def compute() -> Fixed:
        distance = a - b
        return _reduced(distance * distance, reduction)

    return secret(Later(engine, () if reduction else torch.broadcast_shapes(x.shape, target.shape), compute))


@handles(aten.mse_loss_backward.default)
def mse_loss_backward(grad: Any, x: Any, target: Any, reduction: int) -> SecretTensor:
    """Twice the distance, over the count for the mean."""
    engine = engine_of(grad, x, target)
    distance = number(x, engine) - number(target, engine)
    count = math.prod(distance.shape) if reduction == _MEAN else 1
    return secret(distance * (2 / count) * number(grad, engine))


def _reduced(loss: Fixed, reduction: int) -> Fixed:
    if not reduction:
        return loss
    count = math.prod(loss.shape)
    return loss.map(lambda part: part.sum()) * (1 / count if reduction == _MEAN else 1)


def _one_hot(target: Any, classes: int, engine: Engine) -> Fixed:
    """Of the target's shape, and one dimension more: the classes."""
    if not isinstance(target, SecretTensor):
        return Fixed.constant(
            engine, (target[..., None] == torch.arange(classes, device=target.device)).to(torch.int64)
        )
    return one_hot(target, classes)
