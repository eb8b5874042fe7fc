"""Activations."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hansa.mpc import functions
from hansa.mpc.fixed import Fixed
from hansa.mpc.operations.compare import amax
from hansa.mpc.operations.wrap import engine_of, number, secret
from hansa.mpc.secret import SecretTensor, dispatch, handles

aten = torch.ops.aten


@handles(aten.relu.default)
def relu(x: SecretTensor) -> SecretTensor:
    """The number where it is positive; its sign serves the backward pass, too."""
    positive = 1 - x.value.negative()
    value = x.value * positive
    value.cached["positive"] = positive
    return secret(value, x.dtype)


@handles(aten.threshold_backward.default)
def threshold_backward(grad: Any, x: Any, threshold: float) -> SecretTensor:
    """The gradient of relu."""
    engine = engine_of(grad, x)
    known = number(x, engine)
    positive = known.cached.get("positive")
    if positive is None or threshold != 0:
        positive = (threshold - known).negative() if threshold else (-known).negative()
    return secret(number(grad, engine) * positive)


@handles(aten.leaky_relu.default)
def leaky_relu(x: SecretTensor, slope: float = 0.01) -> SecretTensor:
    """The number, times a slope where it is negative."""
    return secret(x.value - x.value * x.value.negative() * (1 - slope))


@handles(aten.sigmoid.default)
def sigmoid(x: SecretTensor) -> SecretTensor:
    """See `functions.sigmoid`."""
    return secret(functions.sigmoid(x.value))


@handles(aten.tanh.default)
def tanh(x: SecretTensor) -> SecretTensor:
    """See `functions.tanh`."""
    return secret(functions.tanh(x.value))


@handles(aten.gelu.default)
def gelu(x: SecretTensor, *, approximate: str = "none") -> SecretTensor:
    """The number times the normal distribution function."""
    cdf = functions.normal_cdf(x.value)
    value = x.value * cdf
    value.cached["cdf"] = cdf
    x.value.cached["cdf"] = cdf
    return secret(value)


@handles(aten.gelu_backward.default)
def gelu_backward(grad: Any, x: SecretTensor, *, approximate: str = "none") -> SecretTensor:
    """Distribution function plus number times density."""
    value = x.value
    cdf = value.cached.get("cdf") or functions.normal_cdf(value)
    density = functions.exp_below_zero(value * value * -0.5) * 0.3989422804
    return secret(number(grad, value.engine) * (cdf + value * density))


@handles(aten.exp.default)
def exp(x: SecretTensor) -> SecretTensor:
    """See `functions.exp`."""
    return secret(functions.exp(x.value))


@handles(aten.log.default)
def log(x: SecretTensor) -> SecretTensor:
    """See `functions.log`."""
    return secret(functions.log(x.value))


@handles(aten.log1p.default)
def log1p(x: SecretTensor) -> SecretTensor:
    """The logarithm of 1 + x."""
    return secret(functions.log(x.value + 1.0))


@handles(aten.log2.default)
def log2(x: SecretTensor) -> SecretTensor:
    """The logarithm to base 2."""
    return secret(functions.log(x.value) * (1 / math.log(2)))


@handles(aten.log10.default)
def log10(x: SecretTensor) -> SecretTensor:
    """The logarithm to base 10."""
    return secret(functions.log(x.value) * (1 / math.log(10)))


@handles(aten.erf.default)
def erf(x: SecretTensor) -> SecretTensor:
    """Twice the normal distribution function of x·√2, less 1: within 4e-3."""
    return secret(functions.normal_cdf(x.value * math.sqrt(2)) * 2 - 1)


@handles(aten.expm1.default)
def expm1(x: SecretTensor) -> SecretTensor:
    """The exponential less 1."""
    return secret(functions.exp(x.value) - 1.0)


@handles(aten.sqrt.default)
def sqrt(x: SecretTensor) -> SecretTensor:
    """See `functions.sqrt`."""
    return secret(functions.sqrt(x.value))


@handles(aten.rsqrt.default)
def rsqrt(x: SecretTensor) -> SecretTensor:
    """See `functions.rsqrt`."""
    return secret(functions.rsqrt(x.value))


def probabilities(x: Fixed) -> tuple[Fixed, Fixed, Fixed]:
    """Softmax over the last dimension; the numbers less their largest; and the sum of their exponentials."""
    largest, _ = functions.maximum(x)
    centred = x - largest.map(lambda part: part[..., None])
    powers = functions.exp_below_zero(centred)
    total = powers.map(lambda part: part.sum(-1, keepdim=True))
    return powers * functions.reciprocal_of_at_least_one(total, x.shape[-1]), centred, total


@handles(aten._softmax.default, aten._safe_softmax.default)
def softmax(x: SecretTensor, dim: int, half_to_float: Any = False) -> SecretTensor:
    """Of numbers less their largest, so that it is right for any logits."""
    if not x.numel() or not x.dim():
        return dispatch(aten.ones_like.default, (x,))  # type: ignore[no-any-return]
    moved = x.value.map(lambda part: part.movedim(dim, -1))
    return secret(probabilities(moved)[0].map(lambda part: part.movedim(-1, dim)))


@handles(aten.logsumexp.default)
def logsumexp(x: SecretTensor, dim: Sequence[int], keepdim: bool = False) -> SecretTensor:
    """The logarithm of the sum of exponentials, of numbers less their largest."""
    largest = amax(x, dim, keepdim=True)
    powers = functions.exp_below_zero(x.value - largest.value).map(lambda part: part.sum(list(dim), keepdim=True))
    out = functions.log(powers) + largest.value
    return secret(out if keepdim else out.map(lambda part: part.squeeze(list(dim))))


@handles(aten.bernoulli_.float)
def bernoulli_(x: SecretTensor, p: float = 0.5, *, generator: Any = None) -> SecretTensor:
    """A public mask, the same at every party."""
    engine = x.value.engine
    return x.write(Fixed.constant(engine, (torch.rand(x.shape, generator=engine.random) < p).to(torch.float32)))


@handles(aten.native_dropout.default)
def native_dropout(x: SecretTensor, p: float, train: bool | None) -> tuple[SecretTensor, Any]:
    """A public mask, the same at every party, and the numbers that it leaves, scaled."""
    if not train or p == 0:
        return x, torch.ones(x.shape, dtype=torch.bool, device=x.value.engine.device)
    mask = x.value.engine.placed(torch.rand(x.shape, generator=x.value.engine.random) >= p)
    return secret(x.value * (mask.to(torch.float32) / (1 - p))), mask
