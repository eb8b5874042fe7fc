"""Products of what one party knows and what the other knows, for any bilinear function.

A function is run on the own part and, in place of the other's, a tensor without values (`Unknown`). The products that
it comes to (of elements or of matrices, after views and paddings, before sums and folds) are noted; all of them are got
by transfers together; and the function runs again, on their results.

    u · v, u known to one, v to the other            Σᵢ 2ⁱ · (vᵢ · u)                     vᵢ: bit i of v
    transfer i        the holder of v chooses by vᵢ, of the other's u · 2ⁱ        of 2⁶⁴ only 2^(64−i) matter
    a matrix product  each entry of the smaller matrix chooses whole rows of the other

so an entry of v costs 64 transfers, and every number of the row that it chooses 344 bytes: bits 0 to 31 are corrected
in words of 64 bits, bits 32 to 47 in words of 32, and the rest in 16 and 8.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from hansa.core.errors import SecretError
from hansa.mpc.protocol import Bilinear, Ring
from hansa.mpc.ring.products import matmul
from hansa.mpc.two_party.share import Sharing

_WORDS = ((np.uint64, 0, 32), (np.uint32, 32, 48), (np.uint16, 48, 56), (np.uint8, 56, 64))
_PIECE = 1 << 21  # words of pads at a time: 16 MB
_ELEMENTWISE = (torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__)
_MATRICES = (matmul, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm)


@dataclass
class Cross:
    """One product of a value of this party's and one of the other's, brought to entries that choose rows.

    Args:
      chooses: whether the entries are this party's; else its rows are chosen.
      known: this party's: entries, shape (entries,), or rows, shape (entries / repeat, length), uint64.
      entries: numbers, 64 transfers each.
      length: of a row.
      repeat: how many entries, one after another, choose the same row.
      shape: of the product.
      finish: from shares of every entry times its row, shape (entries, length), to those of the product.
    """

    chooses: bool
    known: np.ndarray
    entries: int
    length: int
    repeat: int
    shape: tuple[int, ...]
    finish: Callable[[Ring], Ring]
    done: list[np.ndarray] = field(default_factory=list)

    def result(self) -> Ring:
        """This party's share of the product."""
        shares = np.concatenate(self.done) if self.done else np.zeros((0, self.length), np.uint64)
        return self.finish(torch.from_numpy(shares.view(np.int64)))


class Products(Sharing):
    """Numbers of one party times numbers of the other."""

    def _crossed(self, functions: Iterable[tuple[Bilinear, Ring, Ring]]) -> list[Ring]:
        """This party's shares of each function of two tensors of which one is the other party's, without values.

        The other party gives the same functions, with the parts exchanged. Two messages one after another, unless the
        products are too large for the memory of one step.
        """
        passes = [(op, x, y, _Notes()) for op, x, y in functions]
        for op, x, y, notes in passes:
            with notes:
                op(x, y)
        # Both parties see the same products: the first function's of one are the second's of the other.
        noted = [notes.crosses for *_, notes in passes]
        self._transfer([cross for notes in (noted if self.me == 0 else noted[::-1]) for cross in notes])
        results = []
        for op, x, y, notes in passes:
            notes.results = iter([cross.result() for cross in notes.crosses])
            with notes:
                results.append(op(x, y))
        return results

    def _transfer(self, crosses: list[Cross]) -> None:
        for batch in _batches(crosses):
            asked = []
            for cross, part in batch:
                if cross.chooses:
                    bits = (cross.known[part] >> np.arange(64, dtype=np.uint64)[:, None]).astype(np.uint8) & 1
                    asked.append((cross, bits.reshape(-1), self._receiver.request(bits.reshape(-1))))
            for cross, part in batch:
                if not cross.chooses:
                    rows = cross.known[np.arange(part.start, part.stop) // cross.repeat]
                    cross.done.append(_weighed(self._sender.correlated([_moved(rows, *each) for each in _WORDS])))
            for cross, bits, requested in asked:
                count = len(bits) // 64
                shapes = [((end - start) * count, cross.length) for _, start, end in _WORDS]
                dtypes = [np.dtype(each) for each, *_ in _WORDS]
                cross.done.append(_weighed(self._receiver.correlated(requested, bits, shapes, dtypes)))


class Unknown(torch.Tensor):
    """The other party's part: its shape, and zeros of no memory."""

    @classmethod
    def like(cls, part: Ring) -> "Unknown":
        """Of a part's shape."""
        unknown: Unknown = torch.zeros((), dtype=part.dtype).expand(part.shape).as_subclass(cls)
        return unknown


class _Notes(TorchFunctionMode):
    """Notes the products with what has no values, and gives their results when they are known."""

    def __init__(self) -> None:
        super().__init__()
        self.crosses: list[Cross] = []
        self.results: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if len({isinstance(each, Unknown) for each in args if isinstance(each, torch.Tensor)}) < 2:
            return func(*args, **(kwargs or {}))
        if func not in _ELEMENTWISE and func not in _MATRICES:
            raise SecretError(f"two_party knows no product '{func.__name__}': write it with torch.mul or matmul.")
        if self.results is not None:
            return next(self.results)
        made = _elementwise(*args) if func in _ELEMENTWISE else _matrices(*args)
        self.crosses.append(made)
        return torch.zeros(made.shape, dtype=torch.int64)


def _elementwise(x: Ring, y: Ring) -> Cross:
    """The smaller one chooses; along dimensions in which it is repeated, the other's numbers are a row."""
    entries, rows = (x, y) if x.numel() < y.numel() else (y, x)
    shape = torch.broadcast_shapes(x.shape, y.shape)
    entries = entries.reshape((1,) * (len(shape) - entries.dim()) + tuple(entries.shape))
    long = [at for at, size in enumerate(shape) if entries.shape[at] == 1 and size != 1]
    order = [at for at in range(len(shape)) if at not in long] + long
    length = math.prod(shape[at] for at in long)
    known = rows.expand(shape).permute(order) if isinstance(entries, Unknown) else entries

    def finish(shares: Ring) -> Ring:
        return shares.reshape([shape[at] for at in order]).permute(np.argsort(order).tolist())

    return _cross(entries, known, (length, 1), shape, finish)


def _matrices(x: Ring, y: Ring) -> Cross:
    """Entry (k, j) of the right one chooses column k of the left one; if the left one is smaller, of the transposes."""
    if x.numel() < y.numel():
        turned = _matrices(y.mT, x.mT)
        straight = turned.finish
        turned.finish, turned.shape = lambda shares: straight(shares).mT, (*turned.shape[:-2], x.shape[-2], y.shape[-1])
        return turned
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows, depth, columns = x.shape[-2], y.shape[-2], y.shape[-1]
    entries = y.expand(*batch, depth, columns)
    known = x.mT.expand(*batch, depth, rows) if isinstance(y, Unknown) else entries

    def finish(shares: Ring) -> Ring:
        return shares.reshape(*batch, depth, columns, rows).sum(-3).mT

    return _cross(entries, known, (rows, columns), (*batch, rows, columns), finish)


def _cross(
    entries: Ring, known: Ring, row: tuple[int, int], shape: tuple[int, ...], finish: Callable[[Ring], Ring]
) -> Cross:
    chooses, (length, repeat) = not isinstance(entries, Unknown), row
    words = known.reshape((-1,) if chooses else (entries.numel() // repeat, length)).numpy().view(np.uint64)
    return Cross(chooses, words, entries.numel(), length, repeat, shape, finish)


def _batches(crosses: list[Cross]) -> Iterable[list[tuple[Cross, slice]]]:
    """Pieces of all products, so many at a time as memory holds."""
    batch, words = [], 0
    for cross in crosses:
        step = max(1, _PIECE // (64 * max(2, cross.length)))
        for at in range(0, cross.entries, step):
            end = min(at + step, cross.entries)
            batch.append((cross, slice(at, end)))
            words += 64 * max(2, cross.length) * (end - at)
            if words >= _PIECE:
                yield batch
                batch, words = [], 0
    if batch:
        yield batch


def _moved(rows: np.ndarray, dtype: type[np.unsignedinteger[Any]], start: int, end: int) -> np.ndarray:
    """What bits `start` to `end` choose: the rows times 2ⁱ, of which the highest bits are left, as words."""
    places = np.arange(end - start, dtype=np.uint64)[:, None, None]
    return (rows << places).astype(dtype).reshape(-1, rows.shape[1])


def _weighed(groups: list[np.ndarray]) -> np.ndarray:
    """The sum over all bits, of words that stand for the highest bits of numbers: shape (entries, length), uint64."""
    total: Any = 0
    for share, (_, start, end) in zip(groups, _WORDS, strict=True):
        bits = share.reshape(end - start, -1, share.shape[1])
        total = total + (bits.sum(0, dtype=np.uint64) << np.uint64(start))
    return np.asarray(total)
