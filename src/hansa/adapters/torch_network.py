"""A module on its device, with all that makes one visit independent of the ones before.

Names are those of `state_dict()`; of tied parameters the first name counts. Parameters stay the same objects for good,
so they are looked up once; buffers may be replaced by the module's own code, and are looked up each time.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from hansa.adapters.torch_array import resident, sent
from hansa.core.model import Role
from hansa.core.tensors import Shapes, Tensors, dtype_name, mismatch

TRAINED = (Role.TRAINABLE, Role.PRIVATE)


class Network:
    """A module between visits.

    Args:
      module: on its device.
      roles: of its tensors, as `Model.roles`.
      channels_last: whether it computes on images in this layout.
      here: whether it is in this machine's memory; else what it is trained to stays on its device.

    `parameters`, `trained` and `names` (with the buffers) are those of `state_dict()`; `attributes` are the others.
    """

    def __init__(self, module: Any, roles: Mapping[str, Role], channels_last: bool = False, here: bool = True) -> None:
        self._here = here
        self.module = module.to(memory_format=torch.channels_last) if channels_last else module
        self._roles = roles
        found = named(module)
        self.parameters = {name: tensor for name, tensor in module.named_parameters() if name in found}
        for tensor in self.parameters.values():
            tensor.requires_grad_(False)
        for tensor in self.trained.values():
            tensor.requires_grad_()
        floats = [tensor.dtype for tensor in self.parameters.values() if tensor.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float32
        self._shapes: Shapes = {name: (tuple(tensor.shape), dtype_name(tensor)) for name, tensor in found.items()}
        self.names = frozenset(found)
        self._buffers = self.names - frozenset(self.parameters)
        # Buffers that are not in state_dict are reset at each visit.
        self._unsaved = {name: tensor.clone() for name, tensor in module.named_buffers() if name not in found}
        self._training: bool | None = None
        self.attributes = Attributes(module)

    @cached_property
    def trained(self) -> dict[str, Any]:
        """What a visit trains, by name."""
        given = self._roles
        return {name: one for name, one in self.parameters.items() if given.get(name, Role.TRAINABLE) in TRAINED}

    @cached_property
    def pulled(self) -> list[str]:
        """What the proximal term pulls back: private tensors were not sent."""
        return [name for name in self.trained if self._roles.get(name) != Role.PRIVATE]

    def load(self, params: Tensors) -> None:
        """Makes the module's tensors those of `params`."""
        mismatch(self._shapes, params.shapes, "the parameters")
        fill(self._named(), params)
        unsaved = dict(self.module.named_buffers()) if self._unsaved else {}
        for name, tensor in self._unsaved.items():
            unsaved[name].data.copy_(tensor)
        self.attributes.reset()

    def copy(self) -> Tensors:
        """The module's tensors as they are now."""
        if self._here:
            return Tensors({name: array(tensor) for name, tensor in self._named().items()})
        laid = torch.contiguous_format
        return Tensors({n: self.array(one.detach().clone(memory_format=laid)) for n, one in self._named().items()})

    def array(self, tensor: Any) -> Any:
        """A tensor that nobody changes any more as an array, where the network is."""
        return tensor.numpy() if self._here else resident(tensor)

    def train(self, training: bool = True) -> None:
        """Sets the mode of every part; a batch norm whose statistics are frozen always uses them."""
        if self._training != training:
            self.module.train(training)
            for part in self._static:
                part.eval()
            self._training = training

    def others(self) -> dict[str, Any]:
        """All parameters and buffers but those trained."""
        return self._still | (dict(self.module.named_buffers()) if self._buffers or self._unsaved else {})

    def _named(self) -> dict[str, Any]:
        if not self._buffers:
            return self.parameters
        return self.parameters | {name: b for name, b in self.module.named_buffers() if name in self._buffers}

    @cached_property
    def _still(self) -> dict[str, Any]:
        """Parameters that are not trained."""
        return {name: p.detach() for name, p in self.module.named_parameters() if name not in self.trained}

    @cached_property
    def _static(self) -> list[Any]:
        """Parts whose own float buffers are all frozen."""
        still = []
        for prefix, part in self.module.named_modules():
            floats = [name for name, b in part.named_buffers(recurse=False) if b.is_floating_point()]
            own = [f"{prefix}.{name}".lstrip(".") for name in floats]
            if own and all(self._roles.get(name) == Role.FROZEN for name in own):
                still.append(part)
        return still


class Attributes:
    """Numbers, texts and tensors that a module's parts keep as attributes, as they are now.

    What is no buffer is not the model's, so that no visit may find what another left: counters, hidden states, caches.
    """

    def __init__(self, module: Any) -> None:
        parts = [vars(part) for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
        self._kept = [(part, {name: one for name, one in part.items() if name not in _EVERYWHERE}) for part in parts]

    def changed(self) -> bool:
        """Whether any is another than it was."""
        return any(_differing(part, kept) for part, kept in self._kept)

    def reset(self) -> None:
        """Makes all of them what they were."""
        for part, kept in self._kept:
            for name in _differing(part, kept):
                part.pop(name)
                part.update({name: kept[name]} if name in kept else {})


_EVERYWHERE = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, complex, str, tuple, torch.Tensor, type(None))


def _differing(part: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    if len(part) == len(kept) + len(_EVERYWHERE) and all(part.get(name) is one for name, one in kept.items()):
        return []
    own = [name for name in part if name not in _EVERYWHERE]
    return [name for name in own if part[name] is not kept.get(name, part) and isinstance(part[name], _PLAIN)]


def named(module: Any) -> dict[str, Any]:
    """Parameters (tied ones once) and buffers, by their names in state_dict."""
    saved = module.state_dict(keep_vars=True)
    found = {name: p for name, p in module.named_parameters() if name in saved}
    return found | {name: b for name, b in module.named_buffers() if name in saved}


def fill(tensors: Mapping[str, Any], params: Tensors) -> None:
    """Copies `params` into tensors of the same names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            given = params[name]
            if tensor.device.type == "cpu" and isinstance(given, np.ndarray):
                tensor.detach().numpy()[...] = given  # no warning for arrays that may not be written
            else:
                tensor.copy_(sent(given, tensor))


def array(tensor: Any) -> np.ndarray:
    """A tensor as an array of its own, in C order."""
    return np.array(tensor.detach().cpu().numpy(), order="C")
