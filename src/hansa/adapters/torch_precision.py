"""In which precision a module computes: that of its parameters, or bfloat16 where matrices are multiplied.

With `bf16`, convolutions, dense layers and LSTMs multiply in bfloat16 (8 bits of precision, the range of float32) and
add up in float32. Weights, their updates, normalisations and the loss stay in the parameters' own precision. That is
PyTorch's autocast; in a traced step its conversions are part of the graph.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_map

BF16 = "bf16"


def call(module: Any, precision: str | None, inputs: Sequence[Any], tensors: dict[str, Any] | None = None) -> Any:
    """The module's outputs.

    Args:
      module: in the mode that is wanted.
      precision: `bf16`, or None.
      inputs: of the module.
      tensors: used in place of the module's own, by name; a buffer that the module replaces is replaced here.

    Returns:
      What the module gives; with `bf16`, its bfloat16 tensors widened to float32.
    """
    with _casting(precision, inputs):
        if tensors is None:
            outputs = module(*inputs)
        else:
            outputs = torch.func.functional_call(module, tensors, tuple(inputs))
    return outputs if precision is None else tree_map(_wide, outputs)


def _casting(precision: str | None, inputs: Sequence[Any]) -> AbstractContextManager[Any]:
    if precision is None:
        return nullcontext()
    # Without the cache of converted weights: they change at every step, and a traced graph holds its own conversions.
    casting: AbstractContextManager[Any] = torch.autocast(inputs[0].device.type, torch.bfloat16, cache_enabled=False)
    return casting


def _wide(tensor: Any) -> Any:
    return tensor.float() if torch.is_tensor(tensor) and tensor.dtype == torch.bfloat16 else tensor
