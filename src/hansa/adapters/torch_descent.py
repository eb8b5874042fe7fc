"""The formulas of `descent.py` for PyTorch, in place and over all tensors at once: a step costs a handful of calls."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hansa.core.model import LocalWork


class InPlaceDescent:
    """The optimiser of one visit, fresh.

    Args:
      work: what is asked.
      names: of the parameters, in their order.
      params: leaf tensors, changed in place by `step`.
      pulled: names that the proximal term pulls back (private tensors were not sent, so they are not pulled).
      tensor: makes a tensor beside `params[i]` from one of the work's arrays.
    """

    def __init__(
        self, work: LocalWork, names: Sequence[str], params: Sequence[Any], pulled: Sequence[str], tensor: Any
    ) -> None:
        self._work, self._params = work, list(params)
        self._adam = work.optimiser == "adam"
        self._pulled = [i for i, name in enumerate(names) if work.proximal and name in set(pulled)]
        self._start = [params[i].detach().clone() for i in self._pulled]
        self._correction = _terms(work.correction, names, params, tensor)
        self._mask = _terms(work.mask, names, params, tensor)
        self._plain = not (work.weight_decay or self._pulled or self._correction or self._mask)
        self._first: list[Any] = []
        self._second: list[Any] = []
        self._count = 0

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, grads: Sequence[Any]) -> None:
        """One step. `grads` may share memory with anything: they are not written to."""
        self._count += 1
        g = list(grads) if self._plain else self._shaped(grads)
        if self._adam:
            self._adam_step(g)
        elif self._work.momentum:
            if not self._first:
                self._first = [one.clone(memory_format=torch.contiguous_format) for one in g]
            else:
                torch._foreach_mul_(self._first, self._work.momentum)
                torch._foreach_add_(self._first, g)
            torch._foreach_add_(self._params, self._first, alpha=-self._work.lr)
        else:
            torch._foreach_add_(self._params, g, alpha=-self._work.lr)

    def _shaped(self, grads: Sequence[Any]) -> list[Any]:
        # Out of place: autograd may hand out one tensor twice, or a broadcast view.
        g = torch._foreach_add(list(grads), self._params, alpha=self._work.weight_decay)
        if self._pulled:
            drift = torch._foreach_sub([self._params[i] for i in self._pulled], self._start)
            torch._foreach_add_([g[i] for i in self._pulled], drift, alpha=self._work.proximal)
        for i, term in self._correction.items():
            g[i].add_(term)
        for i, term in self._mask.items():
            g[i].mul_(term)
        return list(g)

    def _adam_step(self, g: list[Any]) -> None:
        beta1, beta2 = self._work.betas
        if not self._first:
            self._first = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in self._params]
            self._second = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in self._params]
        torch._foreach_lerp_(self._first, g, 1 - beta1)
        torch._foreach_mul_(self._second, beta2)
        torch._foreach_addcmul_(self._second, g, g, value=1 - beta2)
        below = torch._foreach_sqrt(self._second)
        torch._foreach_div_(below, (1 - beta2**self._count) ** 0.5)
        torch._foreach_add_(below, self._work.eps)
        torch._foreach_addcdiv_(self._params, self._first, below, value=-self._work.lr / (1 - beta1**self._count))


def _terms(given: Mapping[str, Any], names: Sequence[str], params: Sequence[Any], tensor: Any) -> dict[int, Any]:
    return {i: tensor(given[name], params[i]) for i, name in enumerate(names) if name in given}
