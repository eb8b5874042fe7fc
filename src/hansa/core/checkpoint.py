"""Tensors as bytes: the safetensors layout, for messages, models on disk and the state a run resumes from.

    8 bytes: n, little-endian │ n bytes of JSON: {"name": {"dtype", "shape", "data_offsets"}, "__metadata__"} │ data

`load(dump(c)) == c` bit for bit. Reading trusts nothing: every length, name and offset is checked before an array is
made, and nothing is ever unpickled. Format: https://github.com/huggingface/safetensors
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core.errors import CorruptFile
from hansa.core.ledger import Ledger
from hansa.core.tensors import BLOCK, EMPTY, Shapes, Tensors, dtype_name

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}
MAX_HEADER = 64 << 20

Buffer = bytes | memoryview
Read = Callable[[int, int], Buffer]  # (offset, length) -> those bytes


def buffers(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> list[Buffer]:
    """Tensors in the safetensors layout, without copying them: a header and one buffer for each array.

    Args:
      tensors: any arrays; those that are not C-contiguous NumPy arrays are copied.
      metadata: strings kept under `__metadata__`.
    """
    arrays = {name: np.ascontiguousarray(np.asarray(tensors[name])) for name in tensors}
    # Wide types first, so that every array lies at a multiple of its item size.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        size = arrays[name].nbytes
        # np.asarray(...) above makes 0-d arrays 1-d on ascontiguousarray: the shape is the caller's.
        header[name] = {
            "dtype": _CODES[dtype_name(arrays[name])],
            "shape": list(np.shape(tensors[name])),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [
        len(text).to_bytes(8, "little") + text,
        *(arrays[name].data.cast("B") for name in order if arrays[name].size),
    ]


def dump(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as one safetensors file in memory."""
    return b"".join(buffers(tensors, metadata))


class Stored(Mapping[str, np.ndarray]):
    """Arrays that lie in bytes somewhere (memory, a file, a sealed spool) and are read when asked for.

    Args:
      read: gives the bytes at (offset, length).
      size: length of the whole in bytes.

    Raises:
      CorruptFile: the header is not that of a safetensors file, or does not fit the size.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        if size < 8:
            raise CorruptFile(f"{size} bytes are too few for a safetensors header.")
        length = int.from_bytes(read(0, 8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise CorruptFile(f"a header of {length} bytes does not fit into {size} bytes.")
        try:
            header = json.loads(bytes(read(8, length)), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"the header is not JSON with unique names: {error}") from None
        if not isinstance(header, dict):
            raise CorruptFile("the header is not a JSON object.")
        self._start = 8 + length
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise CorruptFile("'__metadata__' is not a mapping of strings to strings.")
        self.metadata: dict[str, str] = metadata
        self._entries = {name: _entry(name, entry) for name, entry in header.items()}
        covered = 0
        for name, (dtype, shape, begin, end) in sorted(self._entries.items(), key=lambda item: item[1][2:]):
            if begin != covered or end - begin != math.prod(shape) * dtype.itemsize:
                raise CorruptFile(f"'{name}' claims the bytes {begin}:{end}, which its shape {shape} does not fill.")
            covered = end
        if self._start + covered != size:
            raise CorruptFile(f"the arrays end at byte {self._start + covered}, but there are {size}: truncated?")

    @property
    def shapes(self) -> Shapes:
        """Name to (shape, dtype), from the header alone."""
        return {name: (self._entries[name][1], self._entries[name][0].name) for name in sorted(self._entries)}

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, begin, end = self._entries[name]
        return np.frombuffer(self._read(self._start + begin, end - begin), dtype).reshape(shape)

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """One array in flat pieces, each read by itself."""
        dtype, _, begin, end = self._entries[name]
        count = (end - begin) // dtype.itemsize
        for first in range(0, count, BLOCK):
            last = min(first + BLOCK, count)
            at = self._start + begin + first * dtype.itemsize
            yield slice(first, last), np.frombuffer(self._read(at, (last - first) * dtype.itemsize), dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def open_bytes(data: Buffer) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file in memory; the arrays are read-only views of `data`.

    >>> tensors, metadata = open_bytes(dump(Tensors({"w": [1.5]}), {"round": "3"}))
    >>> tensors["w"].tolist(), metadata
    ([1.5], {'round': '3'})
    """
    view = memoryview(data)
    stored = Stored(lambda offset, length: view[offset : offset + length], len(view))
    return Tensors({name: stored[name] for name in stored}), stored.metadata


def open_stored(read: Read, size: int) -> tuple[Tensors, dict[str, str]]:
    """The same for bytes that lie elsewhere: arrays are read when asked for, piece by piece through `blocks`."""
    stored = Stored(read, size)
    return Tensors(stored), stored.metadata


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on from its last committed round.

    Args:
      run: the run's random id.
      fingerprint: of the job; a state is never continued by another job.
      round: how many rounds are committed; the next one has this number.
      state: the algorithm's, as parts (`model`, `control`, ...).
      pipeline: public state of the stages (an adaptive clipping bound).
      memories: client to the `round.attempt` of its last counted task, where workers keep memory.
      best: round of the best model so far, and its metric.
      plan: how local training ran (plan and threads); reused on resume, since it decides float rounding.
      ledger: what was released.
    """

    run: str
    fingerprint: str
    round: int
    state: Tensors
    pipeline: Tensors = EMPTY
    memories: Mapping[str, str] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    plan: str = ""
    ledger: Ledger = field(default_factory=Ledger)

    def buffers(self) -> list[Buffer]:
        """The file's pieces, without copying the arrays."""
        facts = {
            "run": self.run, "fingerprint": self.fingerprint, "round": self.round, "memories": dict(self.memories),
            "best": self.best, "plan": self.plan, "ledger": self.ledger.to_json(),
        }  # fmt: skip
        return buffers(Tensors.join(state=self.state, pipeline=self.pipeline), {"hansa": json.dumps(facts)})

    def dump(self) -> bytes:
        """The checkpoint as one file."""
        return b"".join(self.buffers())

    @staticmethod
    def load(data: Buffer) -> "Checkpoint":
        """The checkpoint in `data`; CorruptFile if it is none."""
        tensors, metadata = open_bytes(data)
        try:
            facts = json.loads(metadata["hansa"])
            best = None if facts["best"] is None else (int(facts["best"][0]), float(facts["best"][1]))
            return Checkpoint(
                run=facts["run"], fingerprint=facts["fingerprint"], round=facts["round"], memories=facts["memories"],
                best=best, plan=facts["plan"], ledger=Ledger.from_json(facts["ledger"]),
                state=tensors.part("state"), pipeline=tensors.part("pipeline"),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"this is no checkpoint of Hansa: {error!r} in its metadata.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"unknown keys in {sorted(entry)}")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, begin, end)):
            raise ValueError("sizes are not natural numbers")
        if len(shape) > 32 or math.prod(n for n in shape if n) >= 1 << 58:
            raise ValueError("more axes or elements than an array can have")
        return dtype, shape, begin, end
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"the header's entry for '{name}' is unusable: {error!r}.") from None
