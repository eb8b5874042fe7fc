"""LSTM and GRU step by step, for many clients at once: their one fused operation has no rule for `torch.vmap`.

    LSTM   i, f, g, o = W x + b + U h + c       s ← σ(f)·s + σ(i)·tanh(g)       h ← σ(o)·tanh(s)
    GRU    r, z = σ(W x + b + U h + c)          n = tanh(W x + b + r·(U h + c))       h ← n + z·(h − n)

What comes from the input is one product for all steps of a layer. On a GPU, where it is recorded, a step of a hundred
clients is a few kernels more than that of one; on a CPU the fused operation is faster, client by client.

Sources: Hochreiter and Schmidhuber 1997; Cho et al. 2014, https://arxiv.org/abs/1406.1078; in PyTorch's form.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

State = tuple[Any, ...]  # h, and of an LSTM s: each (batch, hidden)
Cell = Callable[[Any, State, Any, Any], State]  # (what comes from the input, state, U, c) -> state


def _lstm(given: Any, state: State, weight: Any, bias: Any) -> State:
    hidden, kept = state
    i, f, g, o = (given + F.linear(hidden, weight, bias)).chunk(4, -1)
    kept = torch.sigmoid(f) * kept + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(kept), kept


def _gru(given: Any, state: State, weight: Any, bias: Any) -> State:
    (hidden,) = state
    ours, theirs = given.chunk(3, -1), F.linear(hidden, weight, bias).chunk(3, -1)
    r, z = (torch.sigmoid(a + b) for a, b in zip(ours[:2], theirs, strict=False))
    n = torch.tanh(ours[2] + r * theirs[2])
    return (n + z * (hidden - n),)


CELLS: dict[Any, Cell] = {torch._VF.lstm: _lstm, torch._VF.gru: _gru}


class StepByStep(TorchFunctionMode):
    """While it is on, LSTM and GRU are what the formulas say; packed sequences and projections are left as they are."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        cell = CELLS.get(func) if len(args) == 9 and isinstance(args[2], list | tuple) else None
        if cell is None or len(args[2]) != args[4] * (4 if args[3] else 2) * (2 if args[7] else 1):
            return func(*args, **(kwargs or {}))
        return _layers(cell, *args)


def _layers(
    cell: Cell, x: Any, first: Any, weights: Sequence[Any], biased: bool, layers: int, dropout: float, training: bool,
    both: bool, batch_first: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """What `torch.lstm` and `torch.gru` give: outputs, and the last states of all layers and directions."""
    states = [one.unbind(0) for one in (first if isinstance(first, tuple | list) else (first,))]
    x = x.transpose(0, 1) if batch_first else x
    ways, size = 2 if both else 1, 4 if biased else 2
    last: list[State] = []
    for layer in range(layers):
        made = []
        for way in range(ways):
            at = layer * ways + way
            own = [*weights[at * size : (at + 1) * size], None, None][:4]
            outputs, state = _run(cell, x, tuple(one[at] for one in states), own, backwards=way == 1)
            made.append(outputs)
            last.append(state)
        x = torch.cat(made, -1) if both else made[0]
        if dropout and layer < layers - 1:
            x = F.dropout(x, dropout, training)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(one) for one in zip(*last, strict=True)))


def _run(cell: Cell, x: Any, state: State, weights: Sequence[Any], backwards: bool) -> tuple[Any, State]:
    """One layer in one direction, over x of shape (steps, batch, inputs)."""
    given = F.linear(x, weights[0], weights[2]).unbind(0)
    outputs = []
    for one in reversed(given) if backwards else given:
        state = cell(one, state, weights[1], weights[3])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state
