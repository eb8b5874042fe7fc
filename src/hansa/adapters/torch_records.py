"""Record-level privacy in PyTorch (DP-SGD): every record's gradient clipped, their sum noised, at nearly SGD's speed.

For a dense layer, a convolution or an embedding the gradient of one record is a product of what went in (a) and of what
came back (g), so its norm follows from a and g alone, and so does the clipped sum: no gradient of a single record is
ever made, and one backward pass does both.

    dense, one position      ‖gᵢ aᵢᵀ‖² = ‖gᵢ‖²·‖aᵢ‖²                     Σᵢ cᵢ gᵢ aᵢᵀ = (c·G)ᵀ A
    T positions              Σ (A Aᵀ) ∘ (G Gᵀ), or the product itself where that is smaller
    anything else            gradients of single records by torch.func.vmap, some at a time

Sources: Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133; Goodfellow 2015,
https://arxiv.org/abs/1510.01799; Li et al. 2022, https://arxiv.org/abs/2110.05679; Bu et al. 2023,
https://arxiv.org/abs/2210.00038
"""

import functools
import logging
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hansa.core.errors import ConfigError, MissingExtra
from hansa.core.model import LocalWork

try:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
except ModuleNotFoundError as error:
    raise MissingExtra("record-level privacy", "cryptography", "dp") from error

Entropy = Callable[[int], bytes]
log = logging.getLogger("hansa.plan")
_GHOST = (nn.Linear, nn.Conv2d, nn.Embedding)
_AT_ONCE = 64  # records whose gradients are in memory together where each must be made


class Protected:
    """Draws and noise of one visit: AES-128 in counter mode under a key of the operating system.

    Args:
      entropy: gives the key; tests inject it.

    Guarantees:
      No bit depends on the job's seed. Normal deviates reach 6.6 standard deviations; what lies beyond has a
      probability below 10⁻¹⁰ for each.
    """

    def __init__(self, entropy: Entropy = secrets.token_bytes) -> None:
        self._stream = Cipher(algorithms.AES(entropy(16)), modes.CTR(bytes(16))).encryptor()
        # Pages that are fresh in every step cost more than what is computed in them.
        self._zeros, self._raw, self._scratch = b"", np.empty(0, np.uint8), torch.empty(0)

    def _words(self, count: int) -> np.ndarray:
        size = 4 * count
        if len(self._zeros) < size:
            self._zeros, self._raw = bytes(size), np.empty(size + 15, np.uint8)
        self._stream.update_into(memoryview(self._zeros)[:size], self._raw.data)
        return self._raw[:size].view("<u4")

    def chosen(self, examples: int, rate: float) -> np.ndarray:
        """The rows of one step: each with this probability."""
        coins = self._words(2 * examples).view("<u8") >> np.uint64(11)
        return np.flatnonzero(coins < np.uint64(rate * (1 << 53)))

    def normals(self, count: int) -> torch.Tensor:
        """Standard normal deviates, float32 (Box and Muller 1958), in memory that the next ones will be in."""
        half = (count + 1) // 2
        if len(self._scratch) != 4 * half:
            self._scratch = torch.empty(4 * half)
        words, out = self._scratch[: 2 * half], self._scratch[2 * half :]
        np.copyto(words.numpy(), self._words(2 * half), casting="unsafe")
        radius, angle = words[:half], words[half:]
        radius.add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle.mul_(2.0**-32 * 2 * math.pi)
        torch.cos(angle, out=out[:half]).mul_(radius)
        torch.sin(angle, out=out[half:]).mul_(radius)
        return out[:count]

    def __repr__(self) -> str:
        return "Protected()"


class Records:
    """Clipped sums of records' gradients.

    Args:
      module: in training mode.
      loss: (outputs, targets) -> mean over the batch.
      names, weights: what is trained, in order.

    Raises:
      ConfigError: a layer mixes records (batch norm), or the loss is no mean over them.
    """

    def __init__(
        self, module: nn.Module, loss: Callable[..., Any], names: Sequence[str], weights: Sequence[Any]
    ) -> None:
        self._module, self._loss, self._names, self._weights = module, loss, list(names), list(weights)
        for name, part in module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
                raise ConfigError(
                    f"'{name}' is a batch norm, which mixes records, so that no record's gradient is its own: "
                    "use group norm or layer norm, or freeze its statistics."
                )
        self._ghosts = self._owners()
        if self._ghosts is None:
            _say("record-level privacy makes every record's gradient, since some layer has no short way")
        self._checked = False

    def clipped_sum(self, inputs: Sequence[Any], targets: Any, clip: float) -> list[torch.Tensor]:
        """The sum over records of gradients, each scaled to a norm of at most `clip`.

        Args:
          inputs, targets: of a batch, records first.
          clip: above 0.
        """
        if not self._checked:
            self._check_mean(inputs, targets)
        if self._ghosts is not None and (sums := self._by_ghosts(inputs, targets, clip)) is not None:
            return sums
        self._ghosts = None
        return self._one_by_one(inputs, targets, clip)

    def nothing(self) -> list[torch.Tensor]:
        """The sum over no records."""
        return [torch.zeros_like(weight) for weight in self._weights]

    # -- the short way

    def _owners(self) -> dict[nn.Module, dict[str, int]] | None:
        """Layer -> name of its weight or bias -> place among the weights; None if anything lies elsewhere."""
        places = {id(weight): at for at, weight in enumerate(self._weights)}
        owners: dict[nn.Module, dict[str, int]] = {}
        found = 0
        for part in self._module.modules():
            own = {name: places[id(p)] for name, p in part.named_parameters(recurse=False) if id(p) in places}
            if not own:
                continue
            plain = type(part) in _GHOST and getattr(part, "padding_mode", "zeros") == "zeros"
            if not plain or isinstance(getattr(part, "padding", 0), str):
                return None
            owners[part] = own
            found += len(own)
        return owners if found == len(self._weights) else None  # a tied weight would be counted twice

    def _by_ghosts(self, inputs: Sequence[Any], targets: Any, clip: float) -> list[torch.Tensor] | None:
        seen: dict[nn.Module, tuple[Any, Any]] = {}
        twice = False

        def keep(part: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            nonlocal twice
            twice = twice or part in seen
            seen[part] = given[0].detach(), out

        assert self._ghosts is not None
        hooks = [part.register_forward_hook(keep) for part in self._ghosts]
        try:
            loss = self._loss(self._module(*inputs), targets) * len(inputs[0])
        finally:
            for hook in hooks:
                hook.remove()
        if twice or any(part not in seen for part in self._ghosts):
            return None  # a layer used twice adds up before its norm is taken
        backs = torch.autograd.grad(loss, [out for _, out in seen.values()])
        layers = [_layer(part, a, g) for (part, (a, _)), g in zip(seen.items(), backs, strict=True)]
        norms = sum(
            (
                layer.squares("weight" in self._ghosts[layer.part], "bias" in self._ghosts[layer.part])
                for layer in layers
            ),
            torch.zeros(len(inputs[0])),
        )
        if (kept := torch.isfinite(norms)).logical_not().any():
            return self._without(kept, inputs, targets, clip)
        factors = _factors(norms, clip)
        sums: list[Any] = [None] * len(self._weights)
        for layer in layers:
            for name, at in self._ghosts[layer.part].items():
                sums[at] = layer.weight_sum(factors) if name == "weight" else layer.bias_sum(factors)
        return sums

    def _without(self, kept: torch.Tensor, inputs: Sequence[Any], targets: Any, clip: float) -> list[torch.Tensor]:
        """The sum without records whose gradient is not finite: they give nothing, rather than everything."""
        if not kept.any():
            return self.nothing()
        y = tuple(t[kept] for t in targets) if isinstance(targets, tuple) else targets[kept]
        return self.clipped_sum([x[kept] for x in inputs], y, clip)

    # -- the long way

    def _one_by_one(self, inputs: Sequence[Any], targets: Any, clip: float) -> list[torch.Tensor]:
        try:
            return self._stacked(inputs, targets, clip)
        except RuntimeError as error:  # recurrent layers and others that vmap does not know
            _say(f"record-level privacy takes one record after another: {str(error).splitlines()[0]}")
        sums = self.nothing()
        for i in range(len(inputs[0])):
            y = tuple(t[i : i + 1] for t in targets) if isinstance(targets, tuple) else targets[i : i + 1]
            loss = self._loss(self._module(*(x[i : i + 1] for x in inputs)), y)
            grads = torch.autograd.grad(loss, self._weights, allow_unused=True, materialize_grads=True)
            norm = torch.sqrt(sum((g.square().sum() for g in grads), torch.zeros(())))
            if torch.isfinite(norm):
                for total, g in zip(sums, grads, strict=True):
                    total += g * min(1.0, clip / max(float(norm), 1e-12))
        return sums

    def _stacked(self, inputs: Sequence[Any], targets: Any, clip: float) -> list[torch.Tensor]:
        state = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        still = {name: tensor.detach() for name, tensor in state.items()}

        def loss(trained: Mapping[str, Any], x: Sequence[Any], y: Any) -> Any:
            out = torch.func.functional_call(self._module, {**still, **trained}, tuple(each[None] for each in x))
            return self._loss(out, tuple(each[None] for each in y) if isinstance(y, tuple) else y[None])

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")
        trained = dict(zip(self._names, (weight.detach() for weight in self._weights), strict=True))
        sums = [torch.zeros_like(weight) for weight in trained.values()]
        for at in range(0, len(inputs[0]), _AT_ONCE):
            piece = slice(at, at + _AT_ONCE)
            y = tuple(t[piece] for t in targets) if isinstance(targets, tuple) else targets[piece]
            grads = list(each(trained, tuple(x[piece] for x in inputs), y).values())
            norms = sum((g.flatten(1).square().sum(1) for g in grads), torch.zeros(len(grads[0])))
            if (kept := torch.isfinite(norms)).logical_not().any():
                grads = [g[kept] for g in grads]
                norms = norms[kept]
            factors = _factors(norms, clip)
            for total, g in zip(sums, grads, strict=True):
                total += torch.tensordot(factors.to(g.dtype), g, 1)
        return sums

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _check_mean(self, inputs: Sequence[Any], targets: Any) -> None:
        """A loss that is not the mean of its records' losses has no gradients of records."""
        self._checked = True
        if len(inputs[0]) < 2:
            return
        training = self._module.training
        self._module.eval()
        try:
            outputs = self._module(*(x[:2] for x in inputs))
            y = tuple(t[:2] for t in targets) if isinstance(targets, tuple) else targets[:2]
            whole = float(self._loss(outputs, y))
            single = [
                float(
                    self._loss(
                        outputs[i : i + 1], tuple(t[i : i + 1] for t in y) if isinstance(y, tuple) else y[i : i + 1]
                    )
                )
                for i in range(2)
            ]
        finally:
            self._module.train(training)
        if math.isfinite(whole) and not math.isclose(whole, sum(single) / 2, rel_tol=1e-3, abs_tol=1e-5):
            raise ConfigError(
                f"the loss of two records is {whole:.5g}, the mean of their losses {sum(single) / 2:.5g}: record-level "
                "privacy needs a loss that is a mean over records, as F.cross_entropy."
            )


def noisy_mean(sums: Sequence[torch.Tensor], work: LocalWork, protected: Protected) -> list[torch.Tensor]:
    """The clipped sums, in place, with noise of standard deviation noise_multiplier·clip, over the expected batch."""
    dp = work.dp
    assert dp is not None
    assert work.batch_size is not None
    noise, at = protected.normals(sum(each.numel() for each in sums)), 0
    for each in sums:
        drawn = noise[at : at + each.numel()].reshape(each.shape).to(each.device, each.dtype)
        each.add_(drawn, alpha=dp.noise_multiplier * dp.clip).div_(work.batch_size)
        at += each.numel()
    return list(sums)


def steps(work: LocalWork, examples: int) -> int:
    """Optimiser steps of one visit: a pass is as many as expected batches fill the data."""
    assert work.batch_size is not None
    return work.steps if work.steps is not None else (work.epochs or 0) * math.ceil(examples / work.batch_size)


def rate(work: LocalWork, examples: int) -> float:
    """The probability of a record to be in one step."""
    assert work.batch_size is not None
    return min(1.0, work.batch_size / examples)


@functools.cache
def _say(what: str) -> None:
    """Once in a process: every visit of every client has the same reason."""
    log.warning(what)


def _factors(squares: torch.Tensor, clip: float) -> torch.Tensor:
    return (clip / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)


class _Dense:
    """A layer of products at one or several positions: a (B, T, I), g (B, T, O)."""

    def __init__(self, part: nn.Module, a: torch.Tensor, g: torch.Tensor) -> None:
        self.part = part
        self.a, self.g = a.reshape(len(a), -1, a.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
        self._each: torch.Tensor | None = None

    def squares(self, weight: bool, bias: bool) -> torch.Tensor:
        """Squared norms of records' gradients."""
        a, g = self.a, self.g
        positions = a.shape[1]
        if positions == 1:  # the bias's input is 1
            return _squares(g) * ((_squares(a) if weight else 0.0) + float(bias))
        total = _squares(g.sum(1)) if bias else torch.zeros(len(g))
        if not weight:
            return total
        if 2 * positions * (a.shape[2] + g.shape[2]) < a.shape[2] * g.shape[2]:  # else it fits into twice their memory
            return total + (torch.bmm(a, a.mT) * torch.bmm(g, g.mT)).sum((1, 2))
        self._each = torch.bmm(g.mT, a)
        return total + _squares(self._each)

    def weight_sum(self, factors: torch.Tensor) -> torch.Tensor:
        """The scaled sum of gradients of the weight."""
        factors = factors.to(self.g.dtype)
        if self._each is not None:
            return (factors @ self._each.flatten(1)).view(self._each.shape[1:])
        scaled = self.g * factors[:, None, None]
        return scaled.flatten(0, 1).t() @ self.a.flatten(0, 1)

    def bias_sum(self, factors: torch.Tensor) -> torch.Tensor:
        """The scaled sum of gradients of the bias."""
        return factors.to(self.g.dtype) @ (self.g[:, 0] if self.g.shape[1] == 1 else self.g.sum(1))


class _Convolution(_Dense):
    """Windows of an image as positions; groups one after another."""

    def __init__(self, part: nn.Conv2d, a: torch.Tensor, g: torch.Tensor) -> None:
        self._pieces = [
            _Dense(part, _windows(x, part, g.shape[2:]), y.flatten(2).mT)
            for x, y in zip(a.chunk(part.groups, 1), g.chunk(part.groups, 1), strict=True)
        ]
        self.part = part

    def squares(self, weight: bool, bias: bool) -> torch.Tensor:
        return sum((piece.squares(weight, bias) for piece in self._pieces[1:]), self._pieces[0].squares(weight, bias))

    def weight_sum(self, factors: torch.Tensor) -> torch.Tensor:
        weight = self.part.weight
        last = weight.permute(0, 2, 3, 1).shape  # the order of windows
        return torch.cat([piece.weight_sum(factors) for piece in self._pieces]).view(last).permute(0, 3, 1, 2)

    def bias_sum(self, factors: torch.Tensor) -> torch.Tensor:
        return torch.cat([piece.bias_sum(factors) for piece in self._pieces])


def _windows(a: torch.Tensor, part: nn.Conv2d, size: torch.Size) -> torch.Tensor:
    """What each position of a convolution sees: (B, positions, height·width·channels).

    With channels last a window is a few long runs: copied in less than half the time of `unfold`, which takes one
    record and one offset after another.
    """
    (high, wide), (down, right), (tall, broad) = part.padding, part.stride, part.dilation
    a = functional.pad(a, (wide, wide, high, high)).permute(0, 2, 3, 1).contiguous()
    record, row, column, channel = a.stride()
    shape = (len(a), *size, *part.kernel_size, a.shape[-1])
    strides = (record, down * row, right * column, tall * row, broad * column, channel)
    return a.as_strided(shape, strides).reshape(len(a), size[0] * size[1], -1)


def _squares(each: torch.Tensor) -> torch.Tensor:
    """Squared L2 norm of each record's numbers."""
    flat = each.flatten(1)
    return torch.linalg.vecdot(flat, flat)


class _Embedding(_Dense):
    """Rows of a table: two positions meet where their index is the same."""

    def __init__(self, part: nn.Embedding, a: torch.Tensor, g: torch.Tensor) -> None:
        self.part = part
        self.a, self.g = a.reshape(len(a), -1), g.reshape(len(g), -1, g.shape[-1])
        if part.padding_idx is not None:
            self.g = self.g * (self.a != part.padding_idx)[..., None]

    def squares(self, weight: bool, bias: bool) -> torch.Tensor:
        same = self.a[:, :, None] == self.a[:, None, :]
        return (torch.bmm(self.g, self.g.mT) * same).sum((1, 2))

    def weight_sum(self, factors: torch.Tensor) -> torch.Tensor:
        scaled = (self.g * factors.to(self.g.dtype)[:, None, None]).flatten(0, 1)
        return torch.zeros_like(self.part.weight).index_add_(0, self.a.flatten(), scaled)


def _layer(part: nn.Module, a: torch.Tensor, g: torch.Tensor) -> _Dense:
    kinds = {nn.Linear: _Dense, nn.Conv2d: _Convolution, nn.Embedding: _Embedding}
    made: _Dense = kinds[type(part)](part, a, g)
    return made
