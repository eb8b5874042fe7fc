"""Losses. A loss's value needs logarithms that its gradient does not: they are computed when somebody asks for them."""

from typing import Any

import torch

from hansa.mpc import functions
from hansa.mpc.fixed import Fixed
from hansa.mpc.operations.nonlinear import probabilities
from hansa.mpc.operations.wrap import engine_of, number, secret
from hansa.mpc.secret import SecretTensor, handles

aten = torch.ops.aten
_MEAN, _SUM = 1, 2


@handles(aten._log_softmax.default)
def log_softmax(x: SecretTensor, dim: int, half_to_float: bool = False) -> SecretTensor:
    """Numbers less their largest, less the logarithm of the sum of exponentials."""
    moved = x.value.map(lambda part: part.movedim(dim, -1))
    share, centred, total = probabilities(moved)
    value = (centred - functions.log(total)).map(lambda part: part.movedim(-1, dim))
    value.cached["softmax"] = share.map(lambda part: part.movedim(-1, dim))
    return secret(value)


@handles(aten._log_softmax_backward_data.default)
def log_softmax_backward(grad: Any, output: SecretTensor, dim: int, dtype: torch.dtype) -> SecretTensor:
    """The gradient less probability times its sum."""
    value = output.value
    share = value.cached.get("softmax") or functions.exp_below_zero(value)
    given = number(grad, value.engine)
    return secret(given - share * given.map(lambda part: part.sum(dim, keepdim=True)))


@handles(aten.nll_loss_forward.default)
def nll_loss_forward(
    x: Any, target: Any, weight: Any, reduction: int, ignore_index: int
) -> tuple[SecretTensor, torch.Tensor]:
    """Minus the entries of the right classes."""
    engine = engine_of(x, target)
    picked = (number(x, engine) * _one_hot(target, x.shape[-1], engine)).map(lambda part: part.sum(-1))
    count = torch.tensor(float(x.shape[0]))
    if reduction:
        picked = picked.map(lambda part: part.sum())
    return secret(-picked * (1 / x.shape[0] if reduction == _MEAN else 1)), count


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
    negative = value.negative()
    positive = value - value * negative
    size = positive + positive - value
    loss = positive - value * wanted + functions.log(functions.exp_below_zero(-size) + 1.0)
    if weight is not None:
        loss = loss * number(weight, engine)
    if reduction:
        loss = loss.map(lambda part: part.sum()) * (1 / x.numel() if reduction == _MEAN else 1)
    return secret(loss)


def _one_hot(target: Any, classes: int, engine: Any) -> Fixed:
    if not isinstance(target, SecretTensor):
        return Fixed.constant(engine, torch.nn.functional.one_hot(target, classes))
    if (known := target.value.cached.get("one_hot")) is None:
        spread = target.value.map(lambda part: part[:, None].expand(-1, classes))
        known = functions.equal(spread, Fixed.constant(engine, torch.arange(classes)))
        target.value.cached["one_hot"] = known
    return known
