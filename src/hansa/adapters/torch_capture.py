"""A step's kernels recorded once and launched as one: CUDA graphs for the native loops of a GPU.

    first call with a rate:   state and batch ─► memory that stays ─► run once, record ─► held against the loop itself
    every step:               batch i ─► memory that stays ─► one launch ─► losses and outputs i

A step of a small network is some forty kernels of a few microseconds, each of which costs as much again to launch. The
recording reads and writes one piece of memory that all recordings of a device share, since what is in it counts only
during a call. What cannot be recorded (it waits for a value, or draws random numbers, whose seed would be part of the
recording) goes on as it was, with a logged reason and the same result.

A recording holds the learning rate: a new one is recorded anew, and a few are kept.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.fx import Graph

from hansa.adapters.torch_native import Loop
from hansa.adapters.torch_trace import Step

log = logging.getLogger("hansa.plan")
WARM_UPS = 2  # runs before a recording: libraries set themselves up, and allocate what they keep
KEPT = 4  # recordings of one step, by rate
ALIGNED_BYTES = 256
Launch = Callable[[], None]


class Recorder(Protocol):
    """Records what a callable does to memory, so that it can be done again."""

    def record(self, work: Launch) -> Launch:
        """What does the work again, on the same memory.

        Args:
          work: run here, any number of times.

        Raises:
          RuntimeError: it cannot be recorded.
        """


class CudaRecorder:
    """CUDA graphs of one device.

    All share one pool of memory for what a step makes on the way: they are launched one after another on one stream,
    and nothing in the pool outlives a launch.

    Args:
      device: `cuda:N`.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Launch) -> Launch:
        """A graph's replay."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                work()
        now.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (a user's data loader, say) may go on calling CUDA meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError:
            self._pool = torch.cuda.graph_pool_handle()  # the allocator may think that the old one is still in use
            raise
        replay: Launch = graph.replay
        return replay


def recorder_on(device: str) -> Recorder | None:
    """What records there; None where there is nothing to gain."""
    return CudaRecorder(device) if device.startswith("cuda") else None


class Room:
    """Memory that stays, shared by all that is recorded on one device."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.memory = torch.empty(0, dtype=torch.uint8)

    def like(self, tensors: Sequence[Any]) -> list[Any]:
        """Tensors of these shapes, layouts and types. Where they need more than there is, `memory` is replaced, and
        recordings on the old one are worth nothing.
        """
        places, size = [], 0
        for one in tensors:
            places.append(size)
            size += math.ceil(one.nbytes / ALIGNED_BYTES) * ALIGNED_BYTES
        if size > len(self.memory) or self.memory.device != tensors[0].device:
            self.memory = torch.empty(size, dtype=torch.uint8, device=tensors[0].device)
        return [self._at(place, one) for place, one in zip(places, tensors, strict=True)]

    def _at(self, place: int, like: Any) -> Any:
        layout = torch.empty_like(like, device="meta").stride()  # dense, whatever the tensor's own is
        return self.memory[place : place + like.nbytes].view(like.dtype).as_strided(like.shape, layout)


def loop_of(step: Step, room: Room | None) -> Loop:
    """The step, repeated: recorded if there is room for it, and if it can be.

    Args:
      step: one local step.
      room: of the step's device; None on the CPU.
    """
    if room is None:
        return step.loop()
    loop = _interpreted(step.loop())
    if draws(step.graph):
        log.info("kernels of this step are launched one by one: it draws random numbers")
        return loop
    return _Recorded(loop, room)


def draws(graph: Graph) -> bool:
    """Whether a step draws random numbers; recurrent layers of cuDNN say so even where they drop nothing."""
    for node in graph.nodes:
        if node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            names = [argument.name for argument in node.target._schema.arguments]
            if (dict(zip(names, node.args, strict=False)) | dict(node.kwargs)).get("dropout") != 0:
                return True
    return False


def _interpreted(loop: Loop) -> Loop:
    """The loop without PyTorch's fuser, which would compile kernels at the second run, in the midst of a recording."""

    def run(*given: Any) -> None:
        with torch.jit.optimized_execution(False):
            loop(*given)

    return run


class _Recorded:
    """A loop whose steps are launches of a recording.

    Args:
      loop: of so many steps, as `native_loop` gives it.
      room: where a recording works.
    """

    def __init__(self, loop: Loop, room: Room) -> None:
        self._loop, self._room = loop, room
        self._records: dict[Any, _Record] = {}  # by rate and layouts, the last used last
        self._refused = False

    def __call__(self, kept: Sequence[Any], columns: Sequence[Any], rate: float, stores: Sequence[Any]) -> None:
        record = None if self._refused else self._record(kept, columns, rate, stores)
        if record is None:
            return self._loop(kept, columns, rate, stores)
        torch._foreach_copy_(record.kept, list(kept))
        for i in range(len(columns[0])):
            torch._foreach_copy_(record.batch, [column[i : i + 1] for column in columns])
            record.launch()
            torch._foreach_copy_([store[i : i + 1] for store in stores], record.stored)
        torch._foreach_copy_(list(kept), record.kept)

    def _record(
        self, kept: Sequence[Any], columns: Sequence[Any], rate: float, stores: Sequence[Any]
    ) -> "_Record | None":
        """What was recorded for such tensors, or is now; None if it cannot be."""
        given = [*kept, *(one[:1] for one in columns), *(one[:1] for one in stores)]
        key = (rate, *((one.shape, one.stride()) for one in given[: len(kept)]))
        found = self._records.pop(key, None)
        if found is None or found.memory is not self._room.memory:
            try:
                found = self._made(given, len(kept), len(columns), rate)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as reason:
                log.info("kernels of this step are launched one by one: %s", str(reason).splitlines()[0])
                self._refused, self._records = True, {}
                return None
        self._records = dict([*self._records.items(), (key, found)][-KEPT:])
        return found

    def _made(self, given: Sequence[Any], kept: int, columns: int, rate: float) -> "_Record":
        """A new recording, once it has done to these tensors what the loop does to copies of them."""
        held = self._room.like(given)
        record = _Record(held[:kept], held[kept : kept + columns], held[kept + columns :], self._room.memory)

        def work() -> None:
            self._loop(record.kept, record.batch, rate, record.stored)

        torch._foreach_copy_(held, list(given))
        record.launch = self._room.recorder.record(work)
        wanted = [one.clone() for one in given]
        self._loop(wanted[:kept], wanted[kept : kept + columns], rate, wanted[kept + columns :])
        torch._foreach_copy_(held, list(given))
        record.launch()
        for one, other in zip(held, wanted, strict=True):
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise RuntimeError("what was recorded gives something else")
        return record


class _Record:
    """A recording, and the tensors in which it finds what is kept and a batch, and leaves what is stored."""

    def __init__(self, kept: list[Any], batch: list[Any], stored: list[Any], memory: Any) -> None:
        self.kept, self.batch, self.stored, self.memory = kept, batch, stored, memory
        self.launch: Launch = lambda: None
