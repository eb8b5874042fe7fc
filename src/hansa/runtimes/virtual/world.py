"""The virtual clock: what will happen, in order of simulated time, and which device is busy until when.

Nothing sleeps: the clock jumps to the next thing that happens. Things of one time happen in the order in which they
were announced, so that a run has one course.
"""

import heapq
from dataclasses import dataclass, field
from typing import Any

from hansa.core.runtime import Failure, Reply, Task
from hansa.core.tensors import EMPTY, Tensors
from hansa.runtimes.virtual.fleet import Fleet


@dataclass(eq=False)
class Errand:
    """One leg of one task, on its way through a device.

    Args:
      task, device: what is done where.
      begin, end: when the device takes it up, and when it has answered or left.
      compute_s: of which it computes.
      reason: why it will not answer; empty if it will.
      up_bytes: of its answer, declared.
      down, frozen: the message it is done from; dropped when it is known that nobody will do it.
      leg: of the conversation.
      answer: what it will say, where that is computed already.
      asked: whether the runtime inside has been given it.
      over: its round is over, so that its answer will be late.
    """

    task: Task
    device: int
    begin: float
    end: float
    compute_s: float = 0.0
    reason: str = ""
    up_bytes: float = 0.0
    down: Tensors = field(default=EMPTY, repr=False)
    frozen: Tensors = field(default=EMPTY, repr=False)
    leg: int = 0
    answer: Reply | Failure | None = field(default=None, repr=False)
    asked: bool = False
    over: bool = False


class World:
    """Clock, coming happenings and busy devices of one fleet.

    Args:
      fleet: whose devices are kept busy.
      now: simulated seconds at the start.
    """

    def __init__(self, fleet: Fleet, now: float = 0.0) -> None:
        self.fleet, self.now = fleet, now
        self._coming: list[tuple[float, int, Any, Any]] = []  # (time, order, whose, what)
        self._order = 0
        self._busy: dict[int, list[Errand]] = {}  # device -> what it does and will do, in order

    def announce(self, time: float, owner: Any, what: Any) -> None:
        """`what` will happen to `owner` at `time`."""
        heapq.heappush(self._coming, (time, self._order, owner, what))
        self._order += 1

    def next(self, owner: Any) -> Any:
        """What happens to `owner` next; the clock is then at its time. None if nothing will."""
        return self._take() if self._coming else None

    def _take(self) -> Any:
        time, _, _, what = heapq.heappop(self._coming)
        self.now = max(self.now, time)
        return what

    def in_order(self, owner: Any) -> list[Any]:
        """What will happen to `owner`, in order, without moving the clock."""
        return [what for _, _, whose, what in sorted(self._coming, key=lambda entry: entry[:2]) if whose is owner]

    # -- devices

    def free_at(self, device: int) -> float:
        """When a device has done all it was given; now, if it is idle."""
        return max([self.now, *(errand.end for errand in self._busy.get(device, ()))])

    def occupy(self, errand: Errand) -> None:
        """The device has one more thing to do."""
        self._busy.setdefault(errand.device, []).append(errand)

    def release(self, errand: Errand) -> None:
        """The device has done it, or will not do it; twice is once."""
        left = [other for other in self._busy.get(errand.device, ()) if other is not errand]
        if left:
            self._busy[errand.device] = left
        else:
            self._busy.pop(errand.device, None)

    def busy(self) -> dict[int, float]:
        """Devices that have something to do, and until when."""
        ends = {device: max(errand.end for errand in errands) for device, errands in self._busy.items()}
        return {device: end for device, end in ends.items() if end > self.now}
