"""One tensor as a message between halves: its type and shape, then its bytes; checked against what is expected."""

import json
import math
from collections.abc import Sequence

import numpy as np
import torch

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.runtimes.mesh.messages import read

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def packed(tensor: torch.Tensor) -> list[Buffer]:
    """Floats as buffers, which share memory with a contiguous tensor of the CPU."""
    array = tensor.detach().cpu().contiguous()
    head = json.dumps([str(array.dtype).removeprefix("torch."), list(array.shape)]).encode()
    return [head, array.numpy().reshape(-1).view(np.uint8).data]


def unpacked(buffers: Sequence[Buffer], sender: str, what: str, rows: int, shape: Sequence[int] | None) -> torch.Tensor:
    """The tensor, in memory of its own.

    Args:
      buffers: what `packed` gave, or a peer's garbage.
      sender, what: for errors.
      rows: the first axis must have.
      shape: of the other axes; None accepts any.

    Raises:
      ProtocolError: it is no tensor of this shape, or has numbers that are not finite.
    """
    if len(buffers) != 2:
        raise ProtocolError(f"'{sender}' sent no tensor as {what}, but {len(buffers)} parts.")
    head, data = buffers
    name, given = read(head, sender, what, tuple[str, list[int]])
    dtype, sizes = _DTYPES.get(name), tuple(given)
    if dtype is None or math.prod(sizes) * dtype.itemsize != len(data):
        raise ProtocolError(f"'{sender}' sent no tensor as {what}: {name} of shape {sizes} in {len(data)} bytes.")
    wanted = (rows, *(sizes[1:] if shape is None else shape))
    if sizes != wanted:
        raise ProtocolError(f"'{sender}' sent {what} of shape {sizes}, not {wanted}: its half or its rows differ.")
    tensor = torch.empty(sizes, dtype=dtype)
    if tensor.numel():
        tensor.view(-1).numpy().view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    if not torch.isfinite(tensor).all():
        raise ProtocolError(f"'{sender}' sent {what} with numbers that are not finite: lower its learning rate.")
    return tensor
