"""Clipped sums of records' gradients as native graphs, without autograd and without Python between operations.

    batch of any size ─► padded with its first record to the next of a few sizes ─► one native call for that size

A draw of records has another size in every step, and a graph has one: padding has a factor of 0. What cannot be traced,
or does not give what the plain way gives, is left to the plain way.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hansa.adapters.torch_native import Loop, Untraceable, native_loop, written
from hansa.adapters.torch_rewrite import rewrite
from hansa.adapters.torch_tape import record
from hansa.adapters.torch_trace import results

log = logging.getLogger("hansa.plan")
WORTH = 16  # uses of a size before it is traced: that costs as much as some hundred steps save
Tensors = Sequence[Any]
# (totals, the module's tensors, inputs, targets, factors of presence) -> whether all gradients are finite
Sums = Callable[[Tensors, Mapping[str, Any], Tensors, Any, Any], Any]


class SumReplay:
    """The graphs of one module.

    Args:
      sums: adds to the totals in place, records without presence being padding.
      names: of the trained weights, which the totals are for.
      tensors: all of the module's, by name; the same objects for good.
    """

    def __init__(self, sums: Sums, names: Sequence[str], tensors: Mapping[str, Any]) -> None:
        self._sums, self._names, self._tensors = sums, list(names), {n: t.detach() for n, t in tensors.items()}
        self._loops: dict[Any, Loop] = {}
        self._before: list[Any] = []
        self._uses: Counter[Any] = Counter()
        self._refused = any(tensor.device.type != "cpu" for tensor in tensors.values())

    def add(self, totals: Tensors, inputs: Sequence[Any], targets: Any, count: int) -> bool:
        """Adds the clipped sum; False, with totals as they were, where a gradient is not finite or no graph serves.

        Args:
          totals: one for each trained weight.
          inputs, targets: of a batch of a size that comes again and again.
          count: records of it that are meant; the others are padding.
        """
        several, size = isinstance(targets, tuple), len(inputs[0])
        self._uses[size] += 1
        if self._refused or self._uses[size] < WORTH:
            return False
        present = (torch.arange(size) < count).to(totals[0].dtype)
        columns = [*inputs, *(targets if several else (targets,)), present]
        key = tuple((tuple(each.shape), each.dtype) for each in columns)
        if not self._before:
            self._before = [torch.empty_like(total) for total in totals]
        torch._foreach_copy_(self._before, list(totals))
        try:
            if key not in self._loops:
                self._loops[key] = self._checked(totals, columns, len(inputs), several)
            finite = self._call(self._loops[key], totals, columns)
        except Untraceable as reason:
            self._refused = True
            log.info("plain way to clipped sums: %s", reason)
            finite = False
        if not finite:
            torch._foreach_copy_(list(totals), self._before)
        return finite

    def _call(self, loop: Loop, totals: Tensors, columns: Tensors) -> bool:
        finite = torch.empty(1, dtype=torch.bool)
        loop([*totals, *self._tensors.values()], [each[None] for each in columns], 0.0, [finite])
        return bool(finite)

    def _checked(self, totals: Tensors, columns: Tensors, inputs: int, several: bool) -> Loop:
        """A new graph, once it has given what the plain way gives on this batch."""
        names = list(self._tensors)

        def step(totals: list[Any], tensors: list[Any], columns: list[Any]) -> list[Any]:
            wanted = tuple(columns[inputs:-1]) if several else columns[inputs]
            given = dict(zip(names, tensors, strict=True))
            given |= {name: given[name].detach().requires_grad_() for name in self._names}
            return [self._sums(totals, given, columns[:inputs], wanted, columns[-1])]

        seed = torch.random.get_rng_state()
        copies = [each.clone() for each in totals], [each.clone() for each in self._tensors.values()]
        try:
            graph, constants = record(step, *copies, list(columns))
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(f"the sums cannot be traced: {str(error).splitlines()[0]}") from error
        finally:
            torch.random.set_rng_state(seed)
        rewrite(graph)
        holders = [node for node in graph.nodes if node.op == "placeholder"]
        kept = len(totals) + len(names)
        held = set(holders[len(totals) : kept])
        if any(held.intersection(written(node)) for node in graph.nodes):
            raise Untraceable("the module changes a buffer of its own")
        with graph.inserting_after(holders[-1]):
            rate = graph.placeholder("rate")
        loop = native_loop(graph, holders[:kept], holders[kept:], rate, results(graph), constants)
        native, plain = ([torch.zeros_like(each) for each in totals] for _ in range(2))
        finite = self._call(loop, native, columns)
        torch.random.set_rng_state(seed)
        step(plain, list(self._tensors.values()), list(columns))
        torch.random.set_rng_state(seed)
        for one, other in zip(native, plain, strict=True):
            if finite and not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max())):
                raise Untraceable("replayed, a clipped sum differs from the plain way's")
        return loop


def padded(rows: np.ndarray) -> np.ndarray:
    """Rows of a draw and more of the first, so that there are few sizes: at most a sixteenth is padding."""
    granule = max(4, 1 << len(rows).bit_length() >> 5)
    return np.concatenate([rows, np.repeat(rows[:1], -len(rows) % granule)])
