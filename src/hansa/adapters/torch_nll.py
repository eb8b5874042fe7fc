"""The mean negative log-likelihood of classes, of all steps of a loop at once.

What a batch's targets pull at does not depend on the weights, and nothing but the record reads the loss. So a loop
takes the one before its first step and gives the other after its last, each by one call for all rows:

    in a step    log p = log_softmax(z);  loss = -mean log p[y];  dz = backward(-onehot(y) / count, log p)
    before       -onehot(y) / count       of all steps
    in a step    log p, stored;  dz
    after        -mean log p[y]           of all steps

Rows of the class that is ignored count for nothing, as in PyTorch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

ATEN = torch.ops.aten
MEAN, SUM, NONE = 1, 2, 0  # ATen's reductions
STORED = 1 << 16  # bytes of a step's likelihoods, at most, that are kept for after the loop
Constant = Callable[[Any], str]


@dataclass(frozen=True)
class ClassLoss:
    """Where a step has such a loss.

    Args:
      likelihoods: log p, of shape (rows, classes).
      target: the batch's column of classes.
      forward, backward: the calls that a loop leaves out.
      loss: what the step gives.
      ignored: the class whose rows do not count.
    """

    likelihoods: Node
    target: Node
    forward: Node
    backward: Node
    loss: Node
    ignored: int

    def before(self, stored: str, column: str, constant: Constant) -> list[str]:
        """IR that makes `%pulls`: for each step, the gradient at the likelihoods.

        Args:
          stored: the tensor for the likelihoods of all steps, (steps, rows, classes).
          column: the targets of all steps, (steps, rows).
          constant: the name of a constant of the IR.
        """
        like, none, keep = self.likelihoods.meta["val"], constant(None), constant(False)
        dtype, device = constant(like.dtype), constant(like.device)
        zero, one, total, ignored = constant(0), constant(1), constant(SUM), constant(self.ignored)
        return [
            f"%rows : Tensor = aten::flatten({column}, {zero}, {one})",
            f"%likely : Tensor = aten::flatten({stored}, {zero}, {one})",
            f"%unit : Tensor = aten::ones({constant([])}, {dtype}, {none}, {device}, {none})",
            f"%each : Tensor = aten::nll_loss_backward(%unit, %likely, %rows, {none}, {total}, {ignored}, %unit)",
            f"%counted : Tensor = aten::ne({column}, {ignored})",
            f"%count : Tensor = aten::sum(%counted, {constant([1])}, {keep}, {dtype})",
            f"%some : Tensor = aten::clamp_min(%count, {one})",
            f"%share : Tensor = aten::view(%some, {constant([-1, 1, 1])})",
            f"%shaped : Tensor = aten::view_as(%each, {stored})",
            "%pulls : Tensor = aten::div_(%shaped, %share)",
        ]

    def after(self, store: str, constant: Constant) -> list[str]:
        """IR that writes the losses of all steps, (steps,), to `store`."""
        none, keep, ignored = constant(None), constant(False), constant(self.ignored)
        read = f"%likely, %rows, {none}, {constant(NONE)}, {ignored}"
        return [
            f"%losses : Tensor, %weights : Tensor = aten::nll_loss_forward({read})",
            "%by_step : Tensor = aten::view_as(%losses, %counted)",
            f"%sums : Tensor = aten::sum(%by_step, {constant([1])}, {keep}, {none})",
            f"%means : Tensor = aten::div(%sums, %count, {store})",
        ]


def class_loss(graph: Graph, batch: Sequence[Node], results: Sequence[Node]) -> ClassLoss | None:
    """The loss of this kind in a step, if it has one that nothing else reads."""
    for forward in graph.nodes:
        if forward.op != "call_function" or forward.target is not ATEN.nll_loss_forward.default:
            continue
        likelihoods, target, weights, reduction, ignored = forward.args
        items = {user.args[1]: user for user in forward.users}
        if weights is not None or reduction != MEAN or target not in batch or set(items) != {0, 1}:
            continue
        if target.meta["val"].dtype != torch.int64:  # a byte cannot be compared with -100
            continue
        loss, (backward, *others) = items[0], items[1].users
        read_once = list(results).count(loss) == 1 and len(loss.users) == 1 and not others
        if read_once and _begins(backward) and likelihoods.meta["val"].nbytes <= STORED:
            return ClassLoss(likelihoods, target, forward, backward, loss, ignored)
    return None


def _begins(node: Node) -> bool:
    """Whether backward begins here, with a gradient of 1."""
    if node.target is not ATEN.nll_loss_backward.default:
        return False
    gradient: Any = node.args[0]
    return gradient.target is ATEN.ones.default and not gradient.args[0]
