"""An ATen graph as a native loop: many steps in one call, with no Python between operations.

    fx graph of one step ─► TorchScript IR text ─► torch's own interpreter

    loop(kept, columns, rate, losses, outputs):
        for i in steps:   x ← columns[i];   one step, in place;   losses[i], outputs[i] ← what it gave

The IR is written straight from the graph that was recorded, so nothing is scripted, and nothing is compiled. What
depends on no batch (constants, transposes of weights that change in place) is lifted out of the loop. Small results are
written to the same memory at every step, or straight to where they are stored: that saves making them, and views of
them are lifted too; the loss of classes is taken of all steps at once (`torch_nll`). Beside its matrix products a step
of a small network is some twenty calls of a microsecond or two, so each that goes counts.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node

from hansa.adapters.torch_nll import class_loss
from hansa.core.errors import ConfigError

ATEN = torch.ops.aten
VIEWS = (
    ATEN.t.default, ATEN.view.default, ATEN.transpose.int, ATEN.permute.default, ATEN.expand.default,
    ATEN.unsqueeze.default, ATEN.squeeze.dim,
)  # fmt: skip
CONSTANTS = (ATEN.ones.default, ATEN.zeros.default, ATEN.full.default)
EMPTY: Mapping[str, Any] = MappingProxyType({})
SMALL = 1 << 16  # bytes of a result that gets memory of its own for the whole loop
Loop = Callable[..., None]
_DTYPES = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5, torch.float32: 6,
    torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip
_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2}


class Untraceable(ConfigError):
    """This graph has no native form; the plain loop does the same work."""


def native_loop(
    graph: Graph, kept: Sequence[Node], batch: Sequence[Node], rate: Node, results: Sequence[Node],
    constants: Mapping[str, Any] = EMPTY,
) -> Loop:  # fmt: skip
    """The step in `graph`, repeated.

    Args:
      graph: of one step: placeholders, ATen calls (those in place do the step's work), and an output.
      kept: placeholders that stay the same tensors at every step: parameters, buffers, optimiser state.
      batch: placeholders of one batch.
      rate: placeholder of the learning rate, a number.
      results: nodes whose values are stored at every step.
      constants: tensors that the graph's attributes name.

    Returns:
      A callable (kept, columns, rate, stores): kept tensors; `columns` of shape (steps, ...) whose slices are the
      batches; a number; `stores` of shape (steps, ...), one for each result, which are filled.

    Raises:
      Untraceable: an argument that the IR cannot hold.
    """
    writer = _Writer(graph, kept, batch, rate, results)
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            writer.call(node)
    fixed = [constants[node.target] for node in writer.constants]
    text = writer.text()
    try:
        function = torch._C._create_function_from_graph("hansa_local_loop", torch._C.parse_ir(text))
    except RuntimeError as error:
        raise Untraceable(f"PyTorch does not take the step's IR: {str(error).splitlines()[0]}") from error

    def run(tensors: Sequence[Any], columns: Sequence[Any], rate: float, stores: Sequence[Any]) -> None:
        # Nothing here is for autograd, so its dispatch is left out, with its count of changes and views; grad mode is
        # on all the same, since LSTM kernels keep what their backward needs only if it is.
        with torch.enable_grad(), torch._C._AutoDispatchBelowADInplaceOrView():
            function(*columns, float(rate), len(columns[0]), *stores, *tensors, *fixed)

    return run


def writes(node: Node) -> bool:
    """Whether a call changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def written(node: Node) -> list[Node]:
    """The arguments that a call changes."""
    found: list[Node] = []
    if not writes(node):
        return found
    for at, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.kwargs.get(argument.name, node.args[at] if at < len(node.args) else None)
            found += [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, Node)]
    return found


@functools.cache
def _takes_places(target: Any, device: str) -> bool:
    """Whether a call can write what it gives to tensors it is handed. Where the device has no kernel for that, it
    would give what it always does, and copy.
    """
    others = [getattr(target.overloadpacket, name) for name in target.overloadpacket.overloads()]
    like = [one for one in others if one._schema.is_mutable and _taken(one) == _taken(target)]
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(one.name(), device.upper()) for one in like)


def _taken(target: Any) -> list[tuple[str, str]]:
    return [(one.name, str(one.type)) for one in target._schema.arguments if not one.is_out]


def _outputs(node: Node) -> list[list[Node]]:
    """The nodes that stand for each of the things a call gives: itself, or the items that are read of several."""
    returns = node.target._schema.returns
    if [str(one.type) for one in returns] == ["Tensor"]:
        return [[node]]
    items: list[list[Node]] = [[] for _ in (node.meta["val"] if returns else ())]
    for user in node.users:
        if user.target is not operator.getitem:
            raise Untraceable(f"{node.target} is used whole")
        items[user.args[1]].append(user)
    return items


def _becomes(node: Node) -> Iterator[Node]:
    """A value, and the same memory after each call that changes it and gives it back."""
    yield node
    for user in node.users:
        if node in written(user) and _given_back(user.target._schema) is not None:
            yield from _becomes(user)


def _given_back(schema: Any) -> int | None:
    """The place of the argument that a call changes and gives back, as `relu_` does."""
    aliases = [one.alias_info for one in schema.returns]
    if len(aliases) != 1 or aliases[0] is None or not aliases[0].is_write:
        return None
    of = [None if one.alias_info is None else one.alias_info.before_set for one in schema.arguments]
    return of.index(aliases[0].before_set)


class _Writer:
    """Collects the lines of the IR: constants and what is lifted, the body of the loop, and what follows it."""

    def __init__(
        self, graph: Graph, kept: Sequence[Node], batch: Sequence[Node], rate: Node, results: Sequence[Node]
    ) -> None:
        self._kept, self._batch, self._results, self._given = kept, batch, list(results), len(results)
        self._names: dict[Node, str] = {node: f"%kept{i}" for i, node in enumerate(kept)}
        self._names |= {node: f"%batch{i}" for i, node in enumerate(batch)}
        self.constants = [node for node in graph.nodes if node.op == "get_attr"]
        self._names |= {node: f"%{node.name}" for node in self.constants}
        self._names[rate] = "%rate"
        self._still = {
            self._names[node] for node in (*kept, *self.constants)
        }  # with the same value, or the same memory, at every step
        self._stored: set[int] = set()  # results that are written straight to where they are stored
        self._constants: dict[tuple[str, str], str] = {}
        self._before: list[str] = []
        self._body: list[str] = []
        self._after: list[str] = []
        self._lists: dict[str, str] = {}  # of kept tensors: name -> type
        self._count = 0
        self._left_out: list[Node] = []
        self._leave_out_loss(graph)

    def _leave_out_loss(self, graph: Graph) -> None:
        """A loss of classes is taken of all steps at once: its pull before the loop, the loss itself after it."""
        found = class_loss(graph, self._batch, self._results)
        if found is None:
            return
        if found.likelihoods not in self._results:
            like = found.likelihoods.meta["val"]
            sizes = ", ".join(["%steps", *(self.constant(size) for size in like.shape)])
            settings = ", ".join(self.constant(one) for one in (like.dtype, None, like.device, None, None))
            self._before.append(f"%sizes : int[] = prim::ListConstruct({sizes})")
            self._before.append(f"%store{self._given} : Tensor = aten::empty(%sizes, {settings})")
            self._results.append(found.likelihoods)
        stored, column = f"%store{self._results.index(found.likelihoods)}", f"%column{self._batch.index(found.target)}"
        self._before += found.before(stored, column, self.constant)
        self._body.append(f"%pull : Tensor = {self._slice('%pulls')}")
        self._names[found.backward] = "%pull"
        at = self._results.index(found.loss)
        self._after += found.after(f"%store{at}", self.constant)
        self._stored.add(at)
        self._left_out += [found.forward, found.backward]

    def call(self, node: Node) -> None:
        if node in self._left_out:
            return
        schema = node.target._schema
        lifted = node.target in VIEWS and all(self._names[n] in self._still for n in node.all_input_nodes)
        lifted |= node.target in CONSTANTS and not any(node in written(user) for user in node.users)
        lines = self._before if lifted else self._body
        values = [self._argument(node, i, argument, lines) for i, argument in enumerate(schema.arguments)]
        outputs = _outputs(node)
        places = [] if lifted else self._places(node, outputs)
        call = f"{schema.name}({', '.join([*values, *places])})"
        types = [str(one.type) for one in schema.returns]
        if types == ["List[Tensor]"]:
            lines.append(f"%{node.name}_list : Tensor[] = {call}")
            types, call = ["Tensor"] * len(outputs), f"prim::ListUnpack(%{node.name}_list)"
        if set(types) - {"Tensor"}:
            raise Untraceable(f"{schema.name} returns {types}")
        names = [f"%{node.name}_out{i}" for i in range(len(types))]
        lines.append(f"{', '.join(f'{name} : Tensor' for name in names)} = {call}" if names else call)
        if (changed := _given_back(schema)) is not None:
            places = [values[changed]]
        for same, name in zip(outputs, places or names, strict=True):
            self._names |= dict.fromkeys(same, name)
        if lifted:
            self._still.update(names)

    def _places(self, node: Node, outputs: Sequence[Sequence[Node]]) -> list[str]:
        """Where a call is to write what it gives: nowhere if that is not ours to say, or no gain."""
        made = node.meta.get("val")
        made = list(made) if isinstance(made, tuple) else [made]
        if writes(node) or not all(isinstance(one, torch.Tensor) and one.nbytes <= SMALL for one in made):
            return []
        if not _takes_places(node.target, made[0].device.type):
            return []
        users = [user for same in outputs for one in same for user in one.users]
        if any(torch.Tag.inplace_view in getattr(user.target, "tags", ()) for user in users):
            return []  # its shape is changed after it was made
        if any(one.name == "reduction" for one in node.target._schema.arguments) and not made[0].ndim:
            return []  # a loss keeps its terms in what it is handed, and resizes that, before they are reduced
        return [self._place(same, one) for same, one in zip(outputs, made, strict=True)]

    def _place(self, nodes: Sequence[Node], like: Any) -> str:
        """Where one result is stored, or memory of its own."""
        lasting = {later for node in nodes for later in _becomes(node)}
        at = next((i for i, one in enumerate(self._results) if one in lasting), None)
        if at is not None and like.is_contiguous():
            self._stored.add(at)
            self._body.append(self._slot(at))
            return f"%place{at}"
        name = self._fresh()
        made = [list(like.shape), list(like.stride()), like.dtype, None, like.device, None]
        self._before.append(f"{name} : Tensor = aten::empty_strided({', '.join(map(self.constant, made))})")
        self._still.add(name)
        return name

    def _slot(self, at: int) -> str:
        return f"%place{at} : Tensor = {self._slice(f'%store{at}')}"

    def _slice(self, whole: str) -> str:
        """What a tensor of all steps holds for this one: all slices are made at once."""
        made = f"{whole}_slices : Tensor[] = aten::unbind({whole}, {self.constant(0)})"
        if made not in self._before:
            self._before.append(made)
        return f"aten::__getitem__({whole}_slices, %i)"

    def _argument(self, node: Node, at: int, argument: Any, lines: list[str]) -> str:
        if argument.name in node.kwargs:
            value = node.kwargs[argument.name]
        elif not argument.kwarg_only and at < len(node.args):
            value = node.args[at]
        else:
            value = argument.default_value
        if isinstance(value, Node):
            return self._names[value]
        if isinstance(value, list | tuple) and "Tensor" in str(argument.type):
            return self._tensors(value, str(argument.type), lines)
        if isinstance(value, int) and not isinstance(value, bool) and str(argument.type) == "float":
            value = float(value)
        return self.constant(value)

    def _tensors(self, values: Sequence[Node | None], kind: str, lines: list[str]) -> str:
        """A list of tensors. One of kept tensors is built once, and returned: PyTorch's dead code elimination does not
        see that a call which changes a list's tensors changes the graph's arguments.
        """
        element = "Tensor?" if None in values or "Optional" in kind else "Tensor"
        items = [self.constant(None) if one is None else self._names[one] for one in values]
        name, still = self._fresh(), self._still.issuperset(items)
        (self._before if still else lines).append(f"{name} : {element}[] = prim::ListConstruct({', '.join(items)})")
        if still:
            self._lists[name] = f"{element}[]"
        return name

    def constant(self, value: Any) -> str:
        """The name of a constant, written once."""
        value = _DTYPES.get(value, value) if isinstance(value, torch.dtype) else value
        value = _FORMATS.get(value, value) if isinstance(value, torch.memory_format) else value
        value = 0 if isinstance(value, torch.layout) else value
        key = (type(value).__name__, repr(value))
        if key in self._constants:
            return self._constants[key]
        name = self._fresh()
        if value is None:
            line = f"{name} : NoneType = prim::Constant()"
        elif isinstance(value, bool):
            line = f"{name} : bool = prim::Constant[value={int(value)}]()"
        elif isinstance(value, int):
            line = f"{name} : int = prim::Constant[value={value}]()"
        elif isinstance(value, float):
            line = f"{name} : float = prim::Constant[value={value!r}]()"
        elif isinstance(value, str):
            line = f'{name} : str = prim::Constant[value="{value}"]()'
        elif isinstance(value, torch.device):
            line = f'{name} : Device = prim::Constant[value="{value}"]()'
        elif isinstance(value, list | tuple):
            kinds = {type(one) for one in value}
            kind = "bool" if bool in kinds else "float" if float in kinds else "int"
            if not kinds <= {bool, int, float} or len(kinds) > 1:
                raise Untraceable(f"the step holds the list {value!r}")
            line = f"{name} : {kind}[] = prim::ListConstruct({', '.join([self.constant(one) for one in value])})"
        else:
            raise Untraceable(f"the step holds a {type(value).__name__}")
        if isinstance(value, float) and math.isnan(value):
            raise Untraceable(f"the step holds the number {value}")
        self._before.append(line)
        self._constants[key] = name
        return name

    def text(self) -> str:
        """The whole graph as IR."""
        false, true = self.constant(False), self.constant(True)
        columns, stores = range(len(self._batch)), range(self._given)
        typed = [*(f"%column{i} : Tensor" for i in columns), "%rate : float", "%steps : int"]
        tensors = map(self._names.__getitem__, (*self._kept, *self.constants))
        typed += [f"{name} : Tensor" for name in (*(f"%store{i}" for i in stores), *tensors)]
        take = [f"%batch{i} : Tensor = {self._slice(f'%column{i}')}" for i in columns]
        put = []
        for i, node in enumerate(self._results):
            if i not in self._stored:
                put += [self._slot(i), f"%put{i} : Tensor = aten::copy_(%place{i}, {self._names[node]}, {false})"]
        body = "\n".join("      " + line for line in [*take, *self._body, *put])
        before, after = ("\n".join("  " + line for line in lines) for lines in (self._before, self._after))
        return (
            f"graph({', '.join(typed)}):\n{before}\n  prim::Loop(%steps, {true})\n    block0(%i : int):\n{body}\n"
            f"      -> ({true})\n{after}\n  %lists : ({', '.join(self._lists.values())}) = "
            f"prim::TupleConstruct({', '.join(self._lists)})\n  return (%lists)\n"
        )

    def _fresh(self) -> str:
        self._count += 1
        return f"%c{self._count}"
