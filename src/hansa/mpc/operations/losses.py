"""Losses. A loss's value needs logarithms that its gradient does not: they are computed when somebody asks for them."""

import functools
import math
from typing import Any

import torch

from hansa.mpc import functions
from hansa.mpc.fixed import Fixed, Later
from hansa.mpc.operations.nonlinear import probabilities
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


@handles(aten.nll_loss_forward.default)
def nll_loss_forward(
    x: Any, target: Any, weight: Any, reduction: int, ignore_index: int
) -> tuple[SecretTensor, torch.Tensor]:
    """Minus the entries of the right classes."""
    engine = engine_of(x, target)
    given = number(x, engine)

    def compute() -> Fixed:
        picked = (given * _one_hot(target, x.shape[-1], engine)).map(lambda part: part.sum(-1))
        return _reduced(-picked, reduction)

    count = torch.tensor(float(x.shape[0]))
    return secret(Later(engine, x.shape[:1] if not reduction else (), compute)), count


@handles(aten.nll_loss_backward.default)
def nll_loss_backward(
    grad: Any, x: Any, target: Any, weight: Any, reduction: int, ignore_index: int, total: Any
) -> SecretTensor:
    """Minus one at the right classes."""
    engine = engine_of(grad, x, target)
    given = number(grad, engine) * (-1 / x.shape[0] if reduction == _MEAN else -1)
    if not reduction:
        given = given.map(lambda part: part[:, None])
    return secret(_one_hot(target, x.shape[-1], engine) * given)


@handles(aten.binary_cross_entropy_with_logits.default)
def bce_with_logits(
    x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = _MEAN
) -> SecretTensor:
    """The larger of x and 0, less x·target, plus log(1 + exp(−|x|))."""
    engine = engine_of(x, target)
    value, wanted = number(x, engine), number(target, engine)

    def compute() -> Fixed:
        positive = value - value * value.negative()
        size = positive + positive - value
        loss = positive - value * wanted + functions.log(functions.exp_below_zero(-size) + 1.0)
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


def _one_hot(target: Any, classes: int, engine: Any) -> Fixed:
    if not isinstance(target, SecretTensor):
        return Fixed.constant(engine, torch.nn.functional.one_hot(target, classes))
    if (known := target.value.cached.get("one_hot")) is None:
        spread = target.value.map(lambda part: part[:, None].expand(-1, classes))
        known = functions.equal(spread, Fixed.constant(engine, torch.arange(classes)))
        target.value.cached["one_hot"] = known
    return known
