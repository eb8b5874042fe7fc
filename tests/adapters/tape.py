"""A stand-in for CUDA graphs: operations are taken down with the memory they worked on, and done again on the same.

As a graph, a tape holds numbers as they were, looks at no tensor's values, and knows of Python nothing but the
operations that it led to. Not shown: streams, CUDA's own kernels and its memory, and what CUDA refuses to record.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}


class Tape(TorchDispatchMode):
    """Takes down operations while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, [one for one in tree_leaves(out) if torch.is_tensor(one)]))
        return out

    def replay(self) -> None:
        """Does it all again: what operations made is where it was."""
        for func, args, kwargs, made in self.calls:
            again = [one for one in tree_leaves(func(*args, **kwargs)) if torch.is_tensor(one)]
            for one, other in zip(made, again, strict=True):
                if one.data_ptr() != other.data_ptr():
                    one.copy_(other)


class TapeRecorder:
    """Records on a tape; counts what is recorded and launched."""

    def __init__(self) -> None:
        self.recorded = self.launched = 0

    def record(self, work: Any) -> Any:
        work()
        tape = Tape()
        with tape:
            work()
        self.recorded += 1

        def launch() -> None:
            self.launched += 1
            tape.replay()

        return launch
