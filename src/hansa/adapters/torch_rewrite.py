"""Rules that make the ATen graph of a local step cheaper, each equal to what it replaces but for float rounding.

detach(x), alias(x)                         x
t(t(x))                                     x
_unsafe_view(x)                             view(x), which says whose memory it reads
ones_like(scalar)                           a constant
max_pool(relu(x)), and both backward        relu(max_pool(x)): a quarter of the elements
max_pool_backward(g, x), x channels last    g is laid out like x once, not the larger gradient twice
addmm(b, x, t(W)) of many inputs            t(W @ t(x)) + b: BLAS reads a long transposed W slowly
addmm(b, x, w), on a CPU                    mm(x, w), and b added in place: no matrix of b's rows is made first
relu(x), threshold_backward(g, x)           in place where nothing else reads what they read
"""

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from hansa.adapters.torch_native import ATEN, VIEWS, writes

LONG, WIDE, ROWS = 1024, 64, range(8, 65)  # inputs and outputs of a layer, and batches, where t(W @ t(x)) is faster


def rewrite(nodes: Graph) -> None:
    """All rules, once over, in place."""
    for rule in (_identity, _constant, _pool, _pool_layout, _long, _bias, _relu, _threshold):
        for node in list(nodes.nodes):
            if node.op == "call_function":
                with nodes.inserting_before(node):
                    rule(nodes, node)
        drop_unused(nodes)


def drop_unused(nodes: Graph) -> None:
    """Removes nodes that nothing reads and that write nothing."""
    for node in reversed(list(nodes.nodes)):
        if node.op == "call_function" and not node.users and not writes(node):
            nodes.erase_node(node)


def calls(node: Any, target: Any) -> bool:
    """Whether a node is a call of `target`."""
    return isinstance(node, Node) and node.op == "call_function" and node.target is target


def sole(node: Node) -> bool:
    """Whether one other node alone reads it, once."""
    return len(node.users) == 1 and list(next(iter(node.users)).all_input_nodes).count(node) == 1


def _identity(nodes: Graph, node: Node) -> None:
    if calls(node, ATEN.detach.default) or calls(node, ATEN.alias.default):
        node.replace_all_uses_with(node.args[0])
    elif calls(node, ATEN.t.default) and calls(node.args[0], ATEN.t.default):
        node.replace_all_uses_with(node.args[0].args[0])
    elif calls(node, ATEN._unsafe_view.default):
        node.target = ATEN.view.default


def _constant(nodes: Graph, node: Node) -> None:
    value = node.meta.get("val")
    if calls(node, ATEN.ones_like.default) and value.ndim == 0 and not any(writes(user) for user in node.users):
        settings = {"dtype": value.dtype, "device": value.device}
        _replace(node, nodes.call_function(ATEN.ones.default, ([],), settings))


def _pool(nodes: Graph, node: Node) -> None:
    """The pool's users are its values and its indices; relu's are the pool and the two backward calls."""
    if not (calls(node, ATEN.max_pool2d_with_indices.default) and calls(node.args[0], ATEN.relu.default)):
        return
    relu: Any = node.args[0]
    backward = [user for user in relu.users if calls(user, ATEN.max_pool2d_with_indices_backward.default)]
    threshold = [user for user in relu.users if calls(user, ATEN.threshold_backward.default)]
    values = [user for user in node.users if user.args[1] == 0]
    if len(relu.users) != 3 or len(backward) != 1 or len(values) != 1 or [t.args[0] for t in threshold] != backward:
        return
    if threshold[0].args[1:] != (relu, 0) or backward[0].args[1] is not relu or not sole(backward[0]):
        return
    before = relu.args[0]
    node.replace_input_with(relu, before)
    with nodes.inserting_after(values[0]):
        after = nodes.call_function(ATEN.relu.default, (values[0],))
    values[0].replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
    after.meta = dict(values[0].meta)
    with nodes.inserting_before(backward[0]):
        stopped = nodes.call_function(ATEN.threshold_backward.default, (backward[0].args[0], after, 0))
    stopped.meta = dict(backward[0].args[0].meta)
    backward[0].args = (stopped, before, *backward[0].args[2:])
    threshold[0].replace_all_uses_with(backward[0])


def _pool_layout(nodes: Graph, node: Node) -> None:
    if not calls(node, ATEN.max_pool2d_with_indices_backward.default):
        return
    grad, below = node.args[0], node.args[1]
    if calls(grad, ATEN.threshold_backward.default) and sole(grad):
        node, grad = grad, grad.args[0]
    last = torch.channels_last
    if _laid(below, last) and not _laid(grad, last):
        with nodes.inserting_before(node):
            laid = nodes.call_function(ATEN.clone.default, (grad,), {"memory_format": last})
        laid.meta["val"] = torch.empty_like(grad.meta["val"], memory_format=last)
        node.replace_input_with(grad, laid)
        node.meta["val"] = torch.empty_like(node.meta["val"], memory_format=last)


def _long(nodes: Graph, node: Node) -> None:
    if not (calls(node, ATEN.addmm.default) and calls(node.args[2], ATEN.t.default) and not node.kwargs):
        return
    bias, x, turned = node.args
    weight: Any = turned.args[0]
    (rows, inputs), outputs = x.meta["val"].shape, weight.meta["val"].shape[0]
    if weight.meta["val"].device.type != "cpu":
        return
    if inputs < LONG or outputs < WIDE or rows not in ROWS or weight.meta["val"].stride(1) != 1:
        return
    contiguous = {"memory_format": torch.contiguous_format}
    turned = nodes.call_function(ATEN.clone.default, (nodes.call_function(ATEN.t.default, (x,)),), contiguous)
    product = nodes.call_function(ATEN.mm.default, (weight, turned))
    back = nodes.call_function(ATEN.clone.default, (nodes.call_function(ATEN.t.default, (product,)),), contiguous)
    _replace(node, nodes.call_function(ATEN.add.Tensor, (back, bias)))


def _bias(nodes: Graph, node: Node) -> None:
    made = node.meta.get("val")
    if not calls(node, ATEN.addmm.default) or node.kwargs or made.device.type != "cpu":
        return
    bias: Any = node.args[0]
    if bias.meta["val"].ndim == 1 and made.dtype in (torch.float32, torch.float64):  # else it would be rounded twice
        product = nodes.call_function(ATEN.mm.default, node.args[1:])
        product.meta = dict(node.meta)
        _replace(node, nodes.call_function(ATEN.add_.Tensor, (product, bias)))


def _relu(nodes: Graph, node: Node) -> None:
    if calls(node, ATEN.relu.default) and _fresh(node.args[0]):
        _replace(node, nodes.call_function(ATEN.relu_.default, (node.args[0],)))


def _threshold(nodes: Graph, node: Node) -> None:
    if not calls(node, ATEN.threshold_backward.default) or not _fresh(node.args[0]):
        return
    grad: Any = node.args[0]
    if "val" in grad.meta and grad.meta["val"].stride() == node.meta["val"].stride():
        _replace(node, nodes.call_function(ATEN.threshold_backward.grad_input, node.args, {"grad_input": grad}))


def _fresh(node: Any) -> bool:
    """Whether a node's memory is its own and read by one other node alone."""
    if not isinstance(node, Node) or node.op != "call_function" or not sole(node) or node.target in VIEWS:
        return False
    if calls(node, ATEN.add_.Tensor):
        return _fresh(node.args[0])
    made: Any = node.args[0] if node.target is operator.getitem else node
    return all(one.alias_info is None for one in made.target._schema.returns)


def _replace(node: Node, by: Node) -> None:
    by.meta = dict(node.meta)
    node.replace_all_uses_with(by)


def _laid(node: Any, layout: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value is not None and value.ndim == 4 and value.is_contiguous(memory_format=layout)
