"""A dense layer as one operation, forward and backward.

PyTorch takes `nn.Linear` apart into a transpose, a product and a sum before a tensor class sees it, and its gradient
into five operations more: on small batches these cost more than what they compute. A layer whose parameters become
secret therefore becomes a `Linear` of here, which is an `nn.Linear` in all else.
"""

from typing import Any

import torch
from torch import nn

from hansa.mpc.operations.arithmetic import product_of_matrices
from hansa.mpc.operations.wrap import engine_of, number, secret
from hansa.mpc.secret import SecretTensor


class Linear(nn.Linear):
    """`nn.Linear` on secrets: the same parameters, names and results."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of features times the transposed weight, plus the bias."""
        if input.dim() != 2 or not isinstance(self.weight, SecretTensor):
            return super().forward(input)
        result: torch.Tensor = _Dense.apply(input, self.weight, self.bias)
        return result

    @classmethod
    def adopt(cls, module: nn.Module) -> None:
        """Makes an ordinary dense layer, and no subclass of one, such a layer in place."""
        if type(module) is nn.Linear:
            module.__class__ = cls


class _Dense(torch.autograd.Function):
    """x·wᵀ + b, and g·w, gᵀ·x, Σ g for its gradient g."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        engine = engine_of(x, weight, bias)
        result = number(x, engine).bilinear(number(weight, engine), _with_rows)
        return secret(result if bias is None else result + number(bias, engine))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True: by operations that have gradients themselves
            return (
                grad @ weight if by_x else None,
                grad.t() @ x if by_weight else None,
                grad.sum(0) if by_bias else None,
            )
        engine = engine_of(grad, x, weight)
        given = number(grad, engine)
        return (
            secret(given.bilinear(number(weight, engine), product_of_matrices)) if by_x else None,
            secret(given.bilinear(number(x, engine), _of_columns)) if by_weight else None,
            secret(given.map(lambda part: part.sum(0))) if by_bias else None,
        )


def _with_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return product_of_matrices(a, b.t())


def _of_columns(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return product_of_matrices(a.t(), b)
