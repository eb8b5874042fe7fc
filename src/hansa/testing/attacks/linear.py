"""Exact inversion of a dense layer: at batch 1 its weights' gradient is the input times a number that is sent, too.

    ∂L/∂W = δ xᵀ,   ∂L/∂b = δ          so          x = (∂L/∂W)ᵢ / (∂L/∂b)ᵢ   for any i with δᵢ ≠ 0

It holds for any number of steps of plain gradient descent on one example, since every step's δ multiplies the same x.
With several examples a row gives their mixture; a row that only one of them switched on gives that one.

Source: Phong et al. 2018, Privacy-Preserving Deep Learning via Additively Homomorphic Encryption, section 3,
https://eprint.iacr.org/2017/715
"""

from collections.abc import Iterable, Sequence

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.tensors import Shapes, Tensors


def invert_dense(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The layer's input, from the changes of its weights and bias.

    Args:
      weight: shape (units, inputs).
      bias: shape (units,).

    Returns:
      Shape (inputs,), float64; exact but for rounding if there was one example.

    Raises:
      ConfigError: the bias did not change, so that nothing can be said.
    """
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    unit = int(np.argmax(np.abs(bias)))  # the least rounding
    if bias[unit] == 0:
        raise ConfigError("the bias did not change, so its layer's input cannot be read from it.")
    found: np.ndarray = weight[unit] / bias[unit]
    return found


def every_row(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What each unit alone says of the inputs: shape (units that changed, inputs), the largest change first."""
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    order = [unit for unit in np.argsort(-np.abs(bias)) if bias[unit] != 0]
    rows: np.ndarray = weight[order] / bias[order][:, None]
    return rows


def dense_layers(shapes: Shapes, width: int) -> Sequence[tuple[str, str]]:
    """The (weight, bias) names of dense layers that take so many inputs: weight (units, inputs), as in PyTorch."""
    found = []
    for name in in_order(shapes):
        shape = shapes[name][0]
        bias = name.removesuffix("weight") + "bias"
        if (
            name.endswith("weight")
            and len(shape) == 2
            and shape[1] == width
            and shapes.get(bias, ((),))[0] == shape[:1]
        ):
            found.append((name, bias))
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """Names of tensors as their layers follow: `2.bias` before `10.bias`."""
    return sorted(
        names, key=lambda name: [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]
    )


def recover(difference: Tensors, width: int) -> np.ndarray | None:
    """The one example behind an update, if the model begins with a dense layer of this width; None if it has none."""
    layers = dense_layers(difference.shapes, width)
    if not layers:
        return None
    weight, bias = layers[0]
    return invert_dense(difference[weight], difference[bias])
