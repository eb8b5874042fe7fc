"""The whole local step of a module (forward, backward, optimiser) as one ATen graph that runs without autograd.

    torch_tape ─► loss, outputs, gradients ─► torch_rewrite ─► the optimiser's nodes ─► torch_native

Where a plain SGD step adds a matrix product to a weight, the graph says `w.addmm_(a, b, alpha=-lr)`, which never makes
the gradient; momentum and Adam are one fused call over all weights. The learning rate is an argument of the loop.
"""

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from hansa.adapters.torch_native import ATEN, VIEWS, Loop, Untraceable, native_loop, writes
from hansa.adapters.torch_rewrite import calls, drop_unused, rewrite, sole
from hansa.adapters.torch_tape import record
from hansa.core.model import LocalWork

Group = dict[str, Any]  # tensors by name
State = dict[str, Group]
Call = Callable[[Group, Sequence[Any]], Any]


def begin(work: LocalWork, weights: Group, pulled: Sequence[str], terms: Mapping[str, Group], others: Group) -> State:
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
        "others": others,
        "start": {name: weights[name].detach().clone() for name in pulled} if work.proximal else {},
        "correction": terms["correction"],
        "mask": terms["mask"],
        "first": zeros(adam or work.momentum > 0),
        "second": zeros(adam),
        "count": {"steps": torch.zeros((), device=next(iter(weights.values())).device)} if adam else {},
    }


def flat(state: Mapping[str, Group]) -> list[Any]:
    """The tensors of a state, in the order in which a step keeps them."""
    return [tensor for group in state.values() for tensor in group.values()]


def kind_of(work: LocalWork) -> tuple[Any, ...]:
    """What a step depends on: all of the work but its length, lr, which is an argument, and the values of its terms."""
    settings = (work.optimiser, work.momentum, work.betas, work.eps, work.weight_decay, work.proximal, work.dp)
    return (*settings, tuple(work.correction), tuple(work.mask))


def fused(work: LocalWork) -> bool:
    """Whether the optimiser is one fused call, which takes lr itself; a plain step adds -lr times the gradient."""
    return work.optimiser == "adam" or work.momentum > 0


@dataclass
class Step:
    """One local step as a graph, whose placeholders are those kept between steps, those of a batch, and the rate."""

    graph: Graph
    kept: int
    batch: int
    constants: Mapping[str, Any]

    def loop(self) -> Loop:
        """The step, repeated natively."""
        holders = [node for node in self.graph.nodes if node.op == "placeholder"]
        batch = holders[self.kept : self.kept + self.batch]
        return native_loop(self.graph, holders[: self.kept], batch, holders[-1], results(self.graph), self.constants)


def results(graph: Graph) -> list[Any]:
    """What a graph gives."""
    return list(graph.output_node().args[0])


def trace(
    call: Call, state: State, work: LocalWork, loss: Any, inputs: Sequence[Any], targets: Any, keep: bool
) -> Step:
    """One local step; its results are the loss, and the outputs if they are kept.

    Args:
      call: (tensors by name, inputs) -> outputs of the module in training mode.
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

    def gradients(weights: Group, others: Group, batch: list[Any]) -> list[Any]:
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        outputs = call(tensors := {**others, **leaves}, batch[: len(inputs)])
        wanted = tuple(batch[len(inputs) :]) if several else batch[-1]
        value = loss(outputs, wanted)
        total = value.sum() if value.ndim else value  # of clients that share nothing, each gets its own gradient
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        if keep and not torch.is_tensor(outputs):
            raise Untraceable(f"the module gives a {type(outputs).__name__}, and metrics need one tensor")
        for name, one in others.items():
            if tensors[name] is not one:  # replaced by the module; backward may have read what it was
                one.copy_(tensors[name].detach())
        return [*([value, outputs] if keep else [value]), *grads]

    copies = {group: {name: one.detach().clone() for name, one in state[group].items()} for group in _TRACED}
    try:
        graph, constants = record(gradients, copies["weights"], copies["others"], batch)
    except (Untraceable, IndexError):  # the latter is what losses make of labels that are no class
        raise
    except Exception as error:
        if "out of bounds" in str(error):  # the same, of losses under vmap
            raise
        raise Untraceable(f"the step cannot be traced: {str(error).splitlines()[0]}") from error
    rewrite(graph)
    if len(stacked := results(graph)[0].meta["val"].shape):
        _still_padding(graph, stacked[0])
    descend(graph, state, work)
    return Step(graph, len(flat(state)), len(batch), constants)


_TRACED = ("weights", "others")


def _still_padding(nodes: Graph, clients: int) -> None:
    """No gradient for the padding row of any client: PyTorch's rule for stacked embeddings spares the first's alone."""
    for node in list(nodes.nodes):
        if calls(node, ATEN.embedding_dense_backward.default) and node.args[3] >= 0:
            _, _, rows, padding, _ = node.args
            with nodes.inserting_before(node.next):
                each = nodes.call_function(ATEN.view.default, (node, [clients, rows // clients, -1]))
                row = nodes.call_function(ATEN.select.int, (each, 1, padding))
                nodes.call_function(ATEN.zero_.default, (row,))


def peak_bytes(graph: Graph) -> int:
    """Bytes of all values that are alive at once in a step, where they are most, beside its arguments."""
    owner: dict[Node, Node] = {}  # of a view: whose memory it is
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for one in node.all_input_nodes:
            last[owner.get(one, one)] = node
        if node.op == "call_function" and (node.target in VIEWS or node.target is operator.getitem):
            owner[node] = owner.get(node.args[0], node.args[0])
    alive = peak = 0
    size: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node not in owner and not writes(node):
            made = node.meta.get("val")
            size[node] = sum(
                one.nbytes for one in (made if isinstance(made, tuple | list) else [made]) if one is not None
            )
            alive += size[node]
            peak = max(peak, alive)
        for one in {owner.get(one, one) for one in node.all_input_nodes}:
            if last[one] is node:
                alive -= size.pop(one, 0)
    return peak


# -- the optimiser


def descend(nodes: Graph, state: State, work: LocalWork) -> None:
    """Appends one optimiser step, by the formulas of `descent.py`, to a graph whose last results are the gradients.

    Placeholders for the rest of the state go between those of weights and buffers and those of the batch.
    """
    holders = [node for node in nodes.nodes if node.op == "placeholder"]
    names, kept = list(state["weights"]), sum(len(state[group]) for group in _TRACED)
    held: dict[str, dict[str, Node]] = {"weights": dict(zip(names, holders, strict=False))}
    for group in list(state)[len(_TRACED) :]:
        held[group] = {}
        for name in state[group]:
            with nodes.inserting_before(holders[kept]):
                held[group][name] = nodes.placeholder(f"{group}_{len(held[group])}")
    with nodes.inserting_after(holders[-1]):
        rate = nodes.placeholder("rate")
    given = results(nodes)
    rest, grads = given[: -len(names)], given[-len(names) :]
    nodes.output_node().args = (rest,)
    with nodes.inserting_before(nodes.output_node()):
        shaped = [_shaped(nodes, name, grad, held, work) for name, grad in zip(names, grads, strict=True)]
        if fused(work):
            _fused(nodes, names, shaped, held, work, rate)
        else:
            for name, grad in zip(names, shaped, strict=True):
                _add(nodes, held["weights"][name], grad, rate, set(held["weights"].values()))
    drop_unused(nodes)


def _shaped(nodes: Graph, name: str, grad: Node, held: Mapping[str, Mapping[str, Node]], work: LocalWork) -> Node:
    """The gradient with decay, proximal pull, correction and mask."""
    weight = held["weights"][name]
    if work.weight_decay:
        grad = nodes.call_function(ATEN.add.Tensor, (grad, weight), {"alpha": work.weight_decay})
    if name in held["start"]:
        drift = nodes.call_function(ATEN.sub.Tensor, (weight, held["start"][name]))
        grad = nodes.call_function(ATEN.add.Tensor, (grad, drift), {"alpha": work.proximal})
    if name in held["correction"]:
        grad = nodes.call_function(ATEN.add.Tensor, (grad, held["correction"][name]))
    if name in held["mask"]:
        grad = nodes.call_function(ATEN.mul.Tensor, (grad, held["mask"][name]))
    return grad


def _add(nodes: Graph, weight: Node, grad: Node, rate: Node, weights: Collection[Node]) -> None:
    """One plain step, folded into the product or the sum that the gradient is. A product with another weight (of two
    that are multiplied with each other) is left: that one may have been changed before.
    """
    scale = {"beta": 1, "alpha": rate}
    if calls(grad, ATEN.mm.default) and not grad.users and not any(_memory_of(one) in weights for one in grad.args):
        nodes.call_function(ATEN.addmm_.default, (weight, *grad.args), scale)
    elif (factors := _stacked(grad)) is not None and not any(_memory_of(one) in weights for one in factors):
        nodes.call_function(ATEN.baddbmm_.default, (weight, *(_turned(nodes, one) for one in factors)), scale)
    elif (rows := _summed(grad)) is not None:
        made = rows.meta["val"]
        ones = nodes.call_function(ATEN.ones.default, ([made.shape[0]],), {"dtype": made.dtype, "device": made.device})
        nodes.call_function(ATEN.addmv_.default, (weight, nodes.call_function(ATEN.t.default, (rows,)), ones), scale)
    else:
        nodes.call_function(ATEN.add_.Tensor, (weight, grad), {"alpha": rate})


def _stacked(grad: Node) -> tuple[Any, Any] | None:
    """B and A where the gradient is the turned product of stacks, (A B)ᵗ = Bᵗ Aᵗ: a dense layer of many clients."""
    turned = grad
    product: Any = turned.args[0] if calls(turned, ATEN.transpose.int) and turned.args[1:] == (1, 2) else None
    while calls(product, ATEN.view.default) and sole(product) and list(product.meta["val"].shape) == _shape(product):
        product = product.args[0]
    if grad.users or not calls(product, ATEN.bmm.default) or not sole(product):
        return None
    return product.args[1], product.args[0]


def _memory_of(node: Any) -> Node:
    """The node that a view is of, or itself."""
    while node.op == "call_function" and node.target in VIEWS:
        node = node.args[0]
    return node


def _shape(view: Node) -> list[int]:
    return list(view.all_input_nodes[0].meta["val"].shape)


def _turned(nodes: Graph, stack: Node) -> Node:
    """A stack of matrices, each transposed: as they are, if that is what they are of."""
    if calls(stack, ATEN.transpose.int) and stack.args[1:] == (1, 2):
        return stack.all_input_nodes[0]
    turned = nodes.call_function(ATEN.transpose.int, (stack, 1, 2))
    turned.meta["val"] = stack.meta["val"].transpose(1, 2)
    return turned


def _summed(grad: Node) -> Node | None:
    """The matrix whose rows a bias' gradient is the sum of."""
    total = grad.args[0] if calls(grad, ATEN.view.default) else grad
    if calls(total, ATEN.sum.dim_IntList) and list(total.args[1]) == [0] and total.args[0].meta["val"].ndim == 2:
        return total.args[0]
    return None


def _fused(
    nodes: Graph, names: Sequence[str], grads: Sequence[Node], held: Mapping[str, Mapping[str, Node]], work: LocalWork,
    rate: Node,
) -> None:  # fmt: skip
    """Momentum or Adam over all weights at once. The kernels walk through memory, so layouts must be equal."""
    weights = [held["weights"][name] for name in names]
    laid = [_like(nodes, grad, weight) for grad, weight in zip(grads, weights, strict=True)]
    moments = [[held[which][name] for name in names] for which in ("first", "second") if held[which]]
    settings = {"lr": rate, "weight_decay": 0.0, "maximize": False}
    if work.optimiser == "adam":
        steps = held["count"]["steps"]
        nodes.call_function(ATEN.add_.Scalar, (steps, 1))
        settings |= {"beta1": work.betas[0], "beta2": work.betas[1], "eps": work.eps, "amsgrad": False}
        lists = (weights, laid, *moments, [], [steps] * len(names))
        nodes.call_function(ATEN._fused_adam_.default, lists, settings)
    else:
        settings |= {"momentum": work.momentum, "dampening": 0.0, "nesterov": False, "is_first_step": False}
        nodes.call_function(ATEN._fused_sgd_.default, (weights, laid, *moments), settings)


def _like(nodes: Graph, grad: Node, weight: Node) -> Node:
    """The gradient in the weight's layout."""
    made = grad.meta.get("val")  # a shaped gradient has none: sums may take any layout
    if made is not None and made.stride() == weight.meta["val"].stride():
        return grad
    empty = nodes.call_function(ATEN.empty_like.default, (weight,))
    return nodes.call_function(ATEN.copy_.default, (empty, grad))


# -- other sizes


class Axis(NamedTuple):
    """A size that varies: a step that was traced with it at `traced` where the base has `base`, and what is wanted."""

    step: Step
    base: int
    traced: int
    wanted: int


def resized(base: Step, axes: Sequence[Axis]) -> Step | None:
    """The step at sizes that were not traced, from steps that were; None where their graphs differ by more.

    A number of the graph that differs along an axis must be proportional to its size, or to the inverse.
    """
    if any(not _same(base.constants, axis.step.constants) for axis in axes):
        return None
    graph = Graph()
    graph.output(graph.graph_copy(base.graph, {}))
    lists = [list(graph.nodes), *(list(axis.step.graph.nodes) for axis in axes)]
    if len({len(nodes) for nodes in lists}) > 1:
        return None
    try:
        for node, *alike in zip(*lists, strict=True):
            if any((node.op, node.name, node.target) != (one.op, one.name, one.target) for one in alike):
                return None
            node.args = _scaled(node.args, [one.args for one in alike], axes)
            node.kwargs = _scaled(node.kwargs, [one.kwargs for one in alike], axes)
            node.meta["val"] = _scaled(node.meta.get("val"), [one.meta.get("val") for one in alike], axes)
    except _Unlike:
        return None
    return Step(graph, base.kept, base.batch, base.constants)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class _Unlike(Exception):
    """Two graphs differ by more than a size."""


def _scaled(value: Any, others: Sequence[Any], axes: Sequence[Axis]) -> Any:
    """One argument at the wanted sizes."""
    if any(isinstance(other, Node) != isinstance(value, Node) for other in others):
        raise _Unlike
    if isinstance(value, Node):
        if any(other.name != value.name for other in others):
            raise _Unlike
        return value
    if isinstance(value, torch.Tensor):
        sizes, *others = [(tuple(one.shape), one.stride()) for one in (value, *others)]
        return value if others.count(sizes) == len(others) else value.new_empty_strided(*_scaled(sizes, others, axes))
    if isinstance(value, list | tuple):
        if any(len(other) != len(value) for other in others):
            raise _Unlike
        parts = [_scaled(one, [other[i] for other in others], axes) for i, one in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, Mapping):
        return {key: _scaled(one, [other[key] for other in others], axes) for key, one in value.items()}
    factor = Fraction(1)
    for other, axis in zip(others, axes, strict=True):
        if other != value:
            factor *= _factor(value, other, axis)
    scaled = value * factor if factor != 1 else value
    if isinstance(scaled, Fraction) and scaled.denominator > 1:
        raise _Unlike
    return int(scaled) if isinstance(scaled, Fraction) else scaled


def _factor(value: Any, other: Any, axis: Axis) -> Fraction:
    """What a number that differs along an axis is to be multiplied with."""
    if isinstance(value, bool) or not isinstance(value, int | float) or type(other) is not type(value):
        raise _Unlike
    if math.isclose(other * axis.base, value * axis.traced, rel_tol=1e-12):
        return Fraction(axis.wanted, axis.base)
    if math.isclose(other * axis.traced, value * axis.base, rel_tol=1e-12):
        return Fraction(axis.base, axis.wanted)
    raise _Unlike
