"""The whole local step of a module (forward, backward, optimiser) as one cleaned ATen graph.

`make_fx` records what one step does on real shapes. Then: detaches go, double transposes go, and where a plain SGD step
adds a matrix product to a weight, `w.add_(mm(a, b), alpha=-lr)` becomes `w.addmm_(a, b, alpha=-lr)`, which never makes
the gradient. What is left runs without autograd, in torch's own interpreter (`torch_native`).
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from hansa.adapters.torch_native import ATEN, Untraceable, native_loop
from hansa.core.model import LocalWork

Group = dict[str, Any]  # tensors by name


def begin(
    work: LocalWork, weights: Group, pulled: Sequence[str], terms: Mapping[str, Group], others: Group
) -> dict[str, Group]:
    """All that a visit keeps between steps, in groups.

    Args:
      work: says which of them are needed.
      weights: trained; changed in place.
      pulled: names that the proximal term pulls back.
      terms: `correction` and `mask`, by name.
      others: frozen tensors and buffers; buffers change in place.
    """
    adam = work.optimiser == "adam"

    def zeros(wanted: bool) -> Group:
        return {name: torch.zeros_like(weight) for name, weight in weights.items()} if wanted else {}

    return {
        "weights": {name: weight.detach() for name, weight in weights.items()},
        "start": {name: weights[name].detach().clone() for name in pulled} if work.proximal else {},
        "correction": terms["correction"],
        "mask": terms["mask"],
        "first": zeros(adam or work.momentum > 0),
        "second": zeros(adam),
        "others": others,
    }


def rates(work: LocalWork, first: int, steps: int, dtype: Any) -> Any:
    """Adam's learning rate and scale with their bias corrections, for steps first..first+steps: shape (steps, 2)."""
    count = torch.arange(first, first + steps, dtype=torch.float64)
    beta1, beta2 = work.betas
    return torch.stack([work.lr / (1 - beta1**count), (1 - beta2**count).rsqrt()], 1).to(dtype)


def trace(
    module: Any, state: Mapping[str, Group], work: LocalWork, loss: Any, inputs: Sequence[Any], targets: Any, keep: bool
) -> Callable[..., None]:
    """The native loop of the local step; see `native_loop` for its arguments, the kept ones being `flat(state)`.

    Args:
      module: in training mode.
      state: of `begin`, used for its shapes alone.
      work: the optimiser and its terms.
      loss: (outputs, targets) -> mean over the batch.
      inputs, targets: a batch of the shape that is traced; several targets as a tuple.
      keep: whether outputs are stored beside the losses.

    Raises:
      Untraceable: the step depends on values, or holds what a graph cannot.
    """
    several = isinstance(targets, tuple)
    batch = [*inputs, *(targets if several else [targets])]

    def step(state: dict[str, Group], batch: list[Any], rate: Any) -> list[Any]:
        leaves = {name: weight.detach().requires_grad_() for name, weight in state["weights"].items()}
        outputs = torch.func.functional_call(module, {**state["others"], **leaves}, tuple(batch[: len(inputs)]))
        wanted = tuple(batch[len(inputs) :]) if several else batch[-1]
        value = loss(outputs, wanted)
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        if keep and not torch.is_tensor(outputs):
            raise Untraceable(f"the module gives a {type(outputs).__name__}, and metrics need one tensor")
        with torch.no_grad():
            for name, grad in zip(leaves, grads, strict=True):
                _descend(state, name, grad, work, rate)
        return [value, outputs] if keep else [value]

    copies = {group: {name: one.detach().clone() for name, one in many.items()} for group, many in state.items()}
    rate = rates(work, 1, 1, torch.float32)[0]
    try:
        graph = make_fx(step)(copies, batch, rate)
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(f"the step cannot be traced: {str(error).splitlines()[0]}") from error
    results = clean(graph)
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    count = len(flat(state))
    return native_loop(graph, holders[:count], holders[count:-1], holders[-1], results)


def flat(state: Mapping[str, Group]) -> list[Any]:
    """The tensors of a state, in the order of a graph's placeholders."""
    return list(tree_leaves(dict(state)))


def _descend(state: Mapping[str, Group], name: str, grad: Any, work: LocalWork, rate: Any) -> None:
    """One optimiser step of one weight, in place: the formulas of `descent.py`."""
    weight = state["weights"][name]
    if work.weight_decay:
        grad = torch.add(grad, weight, alpha=work.weight_decay)
    if name in state["start"]:
        grad = torch.add(grad, weight - state["start"][name], alpha=work.proximal)
    if name in state["correction"]:
        grad = grad + state["correction"][name]
    if name in state["mask"]:
        grad = grad * state["mask"][name]
    if work.optimiser == "adam":
        first, second = state["first"][name], state["second"][name]
        first.lerp_(grad, 1 - work.betas[0])
        second.mul_(work.betas[1]).addcmul_(grad, grad, value=1 - work.betas[1])
        below = second.sqrt().mul_(rate[1]).add_(work.eps)
        weight.sub_((first * rate[0]).div_(below))
    elif work.momentum:
        first = state["first"][name]
        weight.add_(first.mul_(work.momentum).add_(grad), alpha=-work.lr)
    else:
        weight.add_(grad, alpha=-work.lr)


def clean(graph: GraphModule) -> list[Node]:
    """Drops what does nothing, folds SGD steps into products, and gives the nodes of the output."""
    nodes = graph.graph
    for node in list(nodes.nodes):
        if _calls(node, ATEN.detach.default) or _calls(node, ATEN.alias.default):
            node.replace_all_uses_with(node.args[0])
        elif _calls(node, ATEN.t.default) and _calls(node.args[0], ATEN.t.default):
            node.replace_all_uses_with(node.args[0].args[0])
    for node in list(nodes.nodes):
        if _calls(node, ATEN.add_.Tensor) and _calls(node.args[1], ATEN.mm.default):
            with nodes.inserting_before(node):
                settings = {"beta": 1, "alpha": node.kwargs.get("alpha", 1)}
                fold = nodes.call_function(ATEN.addmm_.default, (node.args[0], *node.args[1].args), settings)
            node.replace_all_uses_with(fold)
            nodes.erase_node(node)
    output = next(node for node in nodes.nodes if node.op == "output")
    results = list(output.args[0])
    for node in reversed(list(nodes.nodes)):
        if node.op == "call_function" and not node.users and not _writes(node):
            nodes.erase_node(node)
    return results


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is target


def _writes(node: Node) -> bool:
    return node.target is not operator.getitem and bool(node.target._schema.is_mutable)
