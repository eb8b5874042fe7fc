"""Record-level privacy in PyTorch (DP-SGD): every record's gradient clipped, their sum noised, at nearly SGD's speed.

For a dense layer, a convolution or an embedding the gradient of one record is a product of what went in (a) and of what
came back (g), so its norm follows from a and g alone, and so does the clipped sum: no gradient of a single record is
ever made, and one backward pass does both. The sum is added to the noise where that lies, already scaled to the mean.

    dense, one position      ‖gᵢ aᵢᵀ‖² = ‖gᵢ‖²·‖aᵢ‖²                     Σᵢ cᵢ gᵢ aᵢᵀ = (c·G)ᵀ A
    T positions              Σ (A Aᵀ) ∘ (G Gᵀ), or the product itself where that is smaller
    anything else            gradients of single records by torch.func.vmap, some at a time
    microbatches             a backward pass for each, in any network

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

from hansa.adapters.torch_native import Untraceable
from hansa.adapters.torch_records_replay import SumReplay
from hansa.core.errors import ConfigError, MissingExtra
from hansa.core.model import LocalWork
from hansa.privacy.records import sensitivity

try:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
except ModuleNotFoundError as error:
    raise MissingExtra("record-level privacy", "cryptography", "dp") from error

Entropy = Callable[[int], bytes]
log = logging.getLogger("hansa.plan")
_GHOST = (nn.Linear, nn.Conv2d, nn.Embedding)
_AT_ONCE = 64  # records whose gradients are in memory together where each must be made


class Protected:
    """Draws, noise and seed of one visit: AES-128 in counter mode under a key of the operating system.

    Args:
      entropy: gives the key; tests inject it.

    Guarantees:
      No bit depends on the job's seed. Normal deviates reach 6.6 standard deviations; what lies beyond has a
      probability below 10⁻¹⁰ for each.
    """

    def __init__(self, entropy: Entropy = secrets.token_bytes) -> None:
        self._stream = Cipher(algorithms.AES(entropy(16)), modes.CTR(bytes(16))).encryptor()
        # Pages that are fresh in every step cost more than what is computed in them.
        self._zeros, self._raw, self._made = b"", np.empty(0, np.uint8), torch.empty(0)

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

    def slots(self, count: int, among: int) -> np.ndarray:
        """For each of so many records the slot that it falls into, 0 to `among` − 1, independently of the others."""
        return (self._words(count).astype(np.uint64) * np.uint64(among) >> np.uint64(32)).astype(np.int64)

    def seed(self) -> int:
        """Of what a network draws itself, as dropout: what one record has must not tell what another was left."""
        return int(self._words(2).view("<u8")[0] >> np.uint64(1))

    def normals(self, count: int, deviation: float = 1.0) -> torch.Tensor:
        """Normal deviates, float32 (Box and Muller 1958), in memory that the next ones will be in."""
        half = (count + 1) // 2
        if len(self._made) != 4 * half:
            self._made = torch.empty(4 * half)
        words = torch.from_numpy(self._words(2 * half).view(np.int32))
        words[:half] &= 0x7FFFFFFF  # signed, they become floats in a third of the time
        numbers, out = self._made[: 2 * half].copy_(words), self._made[2 * half :]
        radius, angle = numbers[:half], numbers[half:]
        radius.add_(0.5).mul_(2.0**-31).log_().mul_(-2 * deviation**2).sqrt_()
        angle.mul_(2.0**-31 * math.pi)
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
      native: whether sizes of batches that come again are traced, and replayed without autograd.

    Raises:
      ConfigError: a layer mixes records (batch norm), or the loss is no mean over them.
    """

    def __init__(
        self, module: nn.Module, loss: Callable[..., Any], names: Sequence[str], weights: Sequence[Any],
        native: bool = False,
    ) -> None:  # fmt: skip
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
        self._room = _Room()
        self._native = native
        self._replays: dict[tuple[float, float], SumReplay] = {}

    def add_clipped(
        self, totals: Sequence[torch.Tensor], inputs: Sequence[Any], targets: Any, clip: float, share: float = 1.0,
        count: int | None = None,
    ) -> None:  # fmt: skip
        """Adds the sum over records of gradients, each scaled to a norm of at most `clip`, and then by `share`.

        Args:
          totals: one for each weight, of its shape and type; changed in place.
          inputs, targets: of a batch, records first.
          clip: above 0.
          share: of the sum, as 1 / batch size.
          count: records that are meant, if not all: those behind them are padding, and give nothing.
        """
        if count is not None:
            short = self._native and self._checked and self._ghosts is not None
            if short and self._replay(clip, share).add(totals, inputs, targets, count):
                return
            inputs, targets = [x[:count] for x in inputs], _rows(targets, slice(count))
        if not self._checked:
            self._check_mean(inputs, targets)
        if self._ghosts is not None and self._by_ghosts(totals, inputs, targets, clip, share):
            return
        self._ghosts = None
        self._one_by_one(totals, inputs, targets, clip, share)

    def add_microbatches(
        self, totals: Sequence[torch.Tensor], inputs: Sequence[Any], targets: Any, clip: float, share: float,
        slots: np.ndarray, expected: float,
    ) -> None:  # fmt: skip
        """Adds the sum over slots of a slot's summed gradients over `expected`, scaled as those of records are.

        Args:
          totals, inputs, targets, clip, share: as in `add_clipped`.
          slots: for each record the one that it fell into.
          expected: records in a slot.

        Guarantees:
          One record more or less changes what is added by at most 2·clip·share: it changes one summand, whose norm is
          at most clip·share before and after, whatever the network does, and 0 where it is not finite.
        """
        if not self._checked:
            self._check_mean(inputs, targets)
        groups = [torch.from_numpy(np.flatnonzero(slots == slot)) for slot in np.unique(slots)]
        for total, each in zip(totals, self._in_turn(inputs, targets, clip, groups, expected), strict=True):
            total.add_(each, alpha=share)

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

    def _by_ghosts(
        self, totals: Sequence[torch.Tensor], inputs: Sequence[Any], targets: Any, clip: float, share: float
    ) -> bool:
        """Whether it could: nothing was added otherwise."""
        layers = self._passed(lambda: self._module(*inputs), len(inputs[0]), targets, self._room.take)
        if layers is None:
            return False
        kept = _finite(squares := self._squares(layers))
        if not kept.all():
            self._without(kept, totals, inputs, targets, clip, share)
        else:
            self._add(totals, layers, _factors(squares, clip, share))
        return True

    def _replay(self, clip: float, share: float) -> SumReplay:
        """The graphs for one clip and share; nothing in them was made before, so that nothing in them is constant."""

        def sums(totals: Any, tensors: Mapping[str, Any], inputs: Any, targets: Any, present: torch.Tensor) -> Any:
            def outputs() -> Any:
                return torch.func.functional_call(self._module, dict(tensors), tuple(inputs))

            layers = self._passed(outputs, len(inputs[0]), targets, _fresh)
            if layers is None:
                raise Untraceable("a layer is used twice, or not at all")
            squares = self._squares(layers)
            self._add(totals, layers, _factors(squares, clip, share) * present)
            return _finite(squares).all()

        if (clip, share) not in self._replays:
            tensors = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
            self._replays[clip, share] = SumReplay(sums, self._names, tensors)
        return self._replays[clip, share]

    def _passed(
        self, forward: Callable[[], Any], records: int, targets: Any, room: Callable[..., torch.Tensor]
    ) -> list[tuple[dict[str, int], "_Dense"]] | None:
        """What went in and came back at every layer, and the places of its weights; None for one that is used twice."""
        seen: dict[nn.Module, tuple[Any, Any]] = {}
        twice = False

        def keep(part: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            nonlocal twice
            twice = twice or part in seen
            seen[part] = given[0].detach(), out

        assert self._ghosts is not None
        hooks = [part.register_forward_hook(keep) for part in self._ghosts]
        try:
            loss = self._loss(forward(), targets) * records
        finally:
            for hook in hooks:
                hook.remove()
        if twice or any(part not in seen for part in self._ghosts):
            return None  # a layer used twice adds up before its norm is taken
        backs = torch.autograd.grad(loss, [out for _, out in seen.values()])
        return [
            (self._ghosts[part], _layer(part, a, g, functools.partial(room, part)))
            for (part, (a, _)), g in zip(seen.items(), backs, strict=True)
        ]

    def _squares(self, layers: Sequence[tuple[dict[str, int], "_Dense"]]) -> torch.Tensor:
        return functools.reduce(torch.add, (layer.squares("weight" in own, "bias" in own) for own, layer in layers))

    def _add(
        self, totals: Sequence[torch.Tensor], layers: Sequence[tuple[dict[str, int], "_Dense"]], factors: torch.Tensor
    ) -> None:
        for own, layer in layers:
            for name, at in own.items():
                (layer.add_weight if name == "weight" else layer.add_bias)(totals[at], factors)

    def _without(
        self, kept: torch.Tensor, totals: Sequence[torch.Tensor], inputs: Sequence[Any], targets: Any, clip: float,
        share: float,
    ) -> None:  # fmt: skip
        """Leaves out records whose gradient is not finite: they give nothing, rather than everything."""
        if kept.any():
            y = _rows(targets, kept)
            self.add_clipped(totals, [x[kept] for x in inputs], y, clip, share)

    # -- the long way

    def _one_by_one(
        self, totals: Sequence[torch.Tensor], inputs: Sequence[Any], targets: Any, clip: float, share: float
    ) -> None:
        try:
            sums = self._stacked(inputs, targets, clip)
        except RuntimeError as error:  # recurrent layers and others that vmap does not know
            _say(f"record-level privacy takes one record after another: {str(error).splitlines()[0]}")
            sums = self._in_turn(inputs, targets, clip, torch.arange(len(inputs[0])).split(1))
        for total, each in zip(totals, sums, strict=True):
            total.add_(each, alpha=share)

    def _in_turn(
        self, inputs: Sequence[Any], targets: Any, clip: float, groups: Sequence[torch.Tensor], expected: float = 1.0
    ) -> list[torch.Tensor]:
        """The sum over groups of rows of their summed gradients over `expected`, clipped."""
        sums = [torch.zeros_like(weight) for weight in self._weights]
        for rows in groups:
            loss = self._loss(self._module(*(x[rows] for x in inputs)), _rows(targets, rows)) * (len(rows) / expected)
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
            y = _rows(targets, piece)
            grads = list(each(trained, tuple(x[piece] for x in inputs), y).values())
            squares = functools.reduce(torch.add, (g.flatten(1).square().sum(1) for g in grads))
            if not (kept := _finite(squares)).all():
                grads = [g[kept] for g in grads]
                squares = squares[kept]
            factors = _factors(squares, clip)
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
            y = _rows(targets, slice(2))
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


def noise_of_mean(weights: Sequence[torch.Tensor], work: LocalWork, protected: Protected) -> list[torch.Tensor]:
    """One tensor like each weight: noise of standard deviation noise_multiplier·sensitivity over what is divided by.

    They lie in memory that the next ones will be in.
    """
    dp = work.dp
    assert dp is not None
    assert work.batch_size is not None
    sizes = [weight.numel() for weight in weights]
    summands = dp.microbatches or work.batch_size
    made = protected.normals(sum(sizes), dp.noise_multiplier * sensitivity(dp) / summands).split(sizes)
    return [each.view(weight.shape).to(weight.device, weight.dtype) for each, weight in zip(made, weights, strict=True)]


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


def _rows(targets: Any, rows: Any) -> Any:
    return tuple(each[rows] for each in targets) if isinstance(targets, tuple) else targets[rows]


def _factors(squares: torch.Tensor, clip: float, share: float = 1.0) -> torch.Tensor:
    return (clip / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0).mul_(share)


def _finite(squares: torch.Tensor) -> torch.Tensor:
    return squares <= torch.finfo(squares.dtype).max  # isfinite has a constant in it that no graph holds


class _Room:
    """Memory for what is large and made anew in every step: fresh pages cost more than what is written to them."""

    def __init__(self) -> None:
        self._kept: dict[Any, torch.Tensor] = {}

    def take(self, part: nn.Module, what: Any, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """A tensor of this shape, with whatever is in it, until the same part asks for the same again."""
        size, key = math.prod(shape), (part, what)
        if key not in self._kept or self._kept[key].numel() < size:
            self._kept[key] = torch.empty(size + size // 4, dtype=like.dtype, device=like.device)
        return self._kept[key][:size].view(*shape)


def _fresh(part: nn.Module, what: Any, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


Take = Callable[[Any, Sequence[int], torch.Tensor], torch.Tensor]  # of one part: what, shape, like


class _Dense:
    """A layer of products at one or several positions: a (B, T, I), g (B, T, O)."""

    def __init__(self, part: nn.Module, a: torch.Tensor, g: torch.Tensor, room: Take, piece: int = 0) -> None:
        self.a, self.g = a.reshape(len(a), -1, a.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
        self._room, self._piece = room, piece
        self._each: torch.Tensor | None = None

    def squares(self, weight: bool, bias: bool) -> torch.Tensor:
        """Squared norms of records' gradients."""
        a, g = self.a, self.g
        positions = a.shape[1]
        if positions == 1:  # the bias's input is 1
            return _squares(g) * ((_squares(a) if weight else 0.0) + float(bias))
        total = _squares(g.sum(1)) if bias else g.new_zeros(len(g))
        if not weight:
            return total
        if 2 * positions * (a.shape[2] + g.shape[2]) < a.shape[2] * g.shape[2]:  # else it fits into twice their memory
            return total + (torch.bmm(a, a.mT) * torch.bmm(g, g.mT)).sum((1, 2))
        self._each = self._room(("each", self._piece), (len(a), g.shape[2], a.shape[2]), g)
        torch.bmm(g.mT, a, out=self._each)
        return total + _squares(self._each)

    def add_weight(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        """Adds the scaled sum of gradients of the weight."""
        factors = factors.to(self.g.dtype)
        if self._each is not None:
            total.view(-1).addmv_(self._each.flatten(1).t(), factors)
        else:
            scaled = self.g * factors[:, None, None]
            total.addmm_(scaled.flatten(0, 1).t(), self.a.flatten(0, 1))

    def add_bias(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        """Adds the scaled sum of gradients of the bias."""
        g = self.g[:, 0] if self.g.shape[1] == 1 else self.g.sum(1)
        total.addmv_(g.t(), factors.to(g.dtype))


class _Convolution(_Dense):
    """Windows of an image as positions; groups one after another."""

    def __init__(self, part: nn.Conv2d, a: torch.Tensor, g: torch.Tensor, room: Take) -> None:
        groups = zip(a.chunk(part.groups, 1), g.chunk(part.groups, 1), strict=True)
        self._pieces = []
        for i, (x, y) in enumerate(groups):
            windows = _windows(x, part, g.shape[2:], functools.partial(room, ("windows", i)))
            self._pieces.append(_Dense(part, windows, y.flatten(2).mT, room, i))

    def squares(self, weight: bool, bias: bool) -> torch.Tensor:
        return functools.reduce(torch.add, (piece.squares(weight, bias) for piece in self._pieces))

    def add_weight(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        for rows, piece in zip(total.chunk(len(self._pieces)), self._pieces, strict=True):
            last = rows.permute(0, 2, 3, 1)  # the order of windows
            summed = torch.zeros(len(rows), last[0].numel(), dtype=rows.dtype, device=rows.device)
            piece.add_weight(summed, factors)
            last += summed.view(last.shape)

    def add_bias(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        for rows, piece in zip(total.chunk(len(self._pieces)), self._pieces, strict=True):
            piece.add_bias(rows, factors)


def _windows(
    a: torch.Tensor, part: nn.Conv2d, size: torch.Size, room: Callable[[Sequence[int], torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What each position of a convolution sees: (B, positions, height·width·channels).

    With channels last a window is a few long runs: copied in less than half the time of `unfold`, which takes one
    record and one offset after another.
    """
    (high, wide), (down, right), (tall, broad) = part.padding, part.stride, part.dilation
    if high or wide:
        a = functional.pad(a, (wide, wide, high, high))
    a = a.permute(0, 2, 3, 1).contiguous()
    record, row, column, channel = a.stride()
    shape = (len(a), *size, *part.kernel_size, a.shape[-1])
    strides = (record, down * row, right * column, tall * row, broad * column, channel)
    return room(shape, a).copy_(a.as_strided(shape, strides)).view(len(a), size[0] * size[1], -1)


def _squares(each: torch.Tensor) -> torch.Tensor:
    """Squared L2 norm of each record's numbers."""
    return torch.linalg.vector_norm(each.flatten(1), dim=1).square_()  # in one pass, unlike a product and its sum


class _Embedding(_Dense):
    """Rows of a table: two positions meet where their index is the same."""

    def __init__(self, part: nn.Embedding, a: torch.Tensor, g: torch.Tensor, room: Take) -> None:
        self.a, self.g = a.reshape(len(a), -1), g.reshape(len(g), -1, g.shape[-1])
        if part.padding_idx is not None:
            self.g = self.g * (self.a != part.padding_idx)[..., None]

    def squares(self, weight: bool, bias: bool) -> torch.Tensor:
        same = self.a[:, :, None] == self.a[:, None, :]
        return (torch.bmm(self.g, self.g.mT) * same).sum((1, 2))

    def add_weight(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        scaled = (self.g * factors.to(self.g.dtype)[:, None, None]).flatten(0, 1)
        total.index_add_(0, self.a.flatten(), scaled)


def _layer(part: nn.Module, a: torch.Tensor, g: torch.Tensor, room: Take) -> _Dense:
    kinds = {nn.Linear: _Dense, nn.Conv2d: _Convolution, nn.Embedding: _Embedding}
    made: _Dense = kinds[type(part)](part, a, g, room)
    return made
