"""Every ATen call that a function makes, written down as an fx graph.

It gives what `make_fx` gives, without what that brings along: the import of PyTorch's compiler, a second and a half of
every process that trains. Tensors that were made outside (a mask, weights of classes) become constants of the graph;
what depends on values is refused by name.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from hansa.adapters.torch_native import ATEN, Untraceable, written


def record(function: Callable[..., Any], *given: Any) -> tuple[Graph, dict[str, Any]]:
    """The calls of `function(*given)`, which is called once.

    Args:
      function: gives a list of tensors.
      given: trees of tensors, each of which becomes a placeholder, in their order. Nothing else is an argument.

    Returns:
      The graph, where `meta["val"]` is like what a node was, with no values; and its constants by name.

    Raises:
      Untraceable: a call depends on values of tensors, or changes a constant.
    """
    tape = _Tape()
    for tensor in tree_leaves(given):
        tape.hold(tensor, tape.graph.placeholder(f"given_{len(tape.graph.nodes)}"))
    with tape:
        results = function(*given)
    tape.graph.output([tape.node(one) for one in results])
    return tape.graph, tape.constants


class _Tape(TorchDispatchMode):
    """Records while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.constants: dict[str, Any] = {}
        # Weakly: a view that somebody else holds is copied by autograd, and the copy would be unknown here.
        self._nodes = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's question whether to import its compiler, so that it leaves this mode alone."""
        return False

    def hold(self, tensor: Any, node: Node) -> None:
        """Says which node a tensor is."""
        self._nodes[tensor] = node
        node.meta["val"] = _like(tensor)

    def node(self, tensor: Any) -> Node:
        """The node of a tensor; one that nothing here has made is a constant."""
        found = self._nodes.get(tensor)
        if found is None:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = tensor
            found = self.graph.create_node("get_attr", name)
            self.hold(tensor, found)
        return found

    def __torch_dispatch__(
        self, call: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(call.name(), "CompositeImplicitAutograd"):
            with self:
                made = call.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if torch.Tag.data_dependent_output in call.tags or _sized_by_values(call, args):
            raise Untraceable(f"'{call.overloadpacket.__name__}' depends on the values of tensors")
        made = call(*args, **kwargs)
        if call is ATEN.lift_fresh.default:  # numbers in the module's code, as a tensor: a constant
            return made
        node = self.graph.call_function(call, *tree_map_only(torch.Tensor, self.node, (tuple(args), dict(kwargs))))
        if any(one.op == "get_attr" for one in written(node)):
            raise Untraceable(f"'{call.overloadpacket.__name__}' changes a tensor that is neither parameter nor buffer")
        if isinstance(made, torch.Tensor):
            self.hold(made, node)
        else:
            node.meta["val"] = tree_map(_like, made)
            for at, one in enumerate(made or ()):
                if isinstance(one, torch.Tensor):
                    self.hold(one, self.graph.call_function(operator.getitem, (node, at)))
        return made


def _like(value: Any) -> Any:
    """A tensor of the same shape, strides, dtype and device. On a CPU memory that nobody touches costs nothing; on a
    GPU it would be taken, so there it is a tensor without any.
    """
    if not isinstance(value, torch.Tensor):
        return value
    with torch._C._DisableTorchDispatch() if value.device.type in ("cpu", "meta") else FakeTensorMode():
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _sized_by_values(call: Any, args: Sequence[Any]) -> bool:
    """Whether a result is as large as values say."""
    if torch.Tag.dynamic_output_shape not in call.tags:
        return False
    if call is ATEN.index.Tensor:
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return True
