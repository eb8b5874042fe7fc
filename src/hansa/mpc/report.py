"""What a program computed and sent, by operation: a protocol that counts.

session.report()                       a table of calls, seconds, rounds and bytes
session.report().picture("flow.svg")   who gave, computed and learnt what
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.mpc.protocol import Bilinear, Cost, Protocol, Ring, Share


@dataclass
class Line:
    """One operation's totals at this party."""

    calls: int = 0
    elements: int = 0
    seconds: float = 0.0
    rounds: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True)
class Opened:
    """A tensor that crossed the border of secrecy.

    Args:
      parties: who gave it, or who learnt it.
      shape: of the tensor.
    """

    parties: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one party has computed and sent, who gave what, and what was revealed to whom.

    Args:
      me: whose report this is.
      parties: all that compute.
      protocol: among them.
      lines: operation to totals.
      shared: what was shared, and by whom, in order.
      revealed: what was opened, and to whom, in order.
      orders: for each sort that opened comparisons of shuffled elements to all parties, how many; they are a random
        order's, and say nothing of the data.
      sent_bytes: to each other party.
      rounds: messages waited for one after another.
      seconds: since the session began.
      busy_seconds: of them, those that this process's processor worked, on all its cores.
    """

    me: str
    parties: tuple[str, ...]
    protocol: str
    lines: dict[str, Line]
    shared: tuple[Opened, ...] = ()
    revealed: tuple[Opened, ...] = ()
    orders: tuple[int, ...] = ()
    sent_bytes: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0

    def __str__(self) -> str:
        head = f"{'operation':<16}{'calls':>8}{'elements':>14}{'seconds':>10}{'rounds':>8}{'MB sent':>10}"
        body = [
            f"{name:<16}{line.calls:>8}{line.elements:>14,}{line.seconds:>10.3f}{line.rounds:>8}"
            f"{line.sent_bytes / 1e6:>10.3f}"
            for name, line in sorted(self.lines.items(), key=lambda pair: -pair[1].seconds)
        ]
        opened = [f"revealed to {', '.join(each.parties)}: shape {each.shape}" for each in self.revealed]
        orders = [f"opened to all, in a sort: {count} comparisons of shuffled elements" for count in self.orders]
        return "\n".join([head, *body, *opened, *orders])

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws who gave what, what the parties computed together, and who learnt what; see `mpc.picture`.

        Args:
          path: a .png, .svg or .pdf file.
        """
        from hansa.mpc.picture import draw

        draw(self, path)

    def to_json(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "Report":
        """What `to_json` gave; ConfigError for anything else."""
        try:
            opened = {
                name: tuple(Opened(tuple(each["parties"]), tuple(each["shape"])) for each in facts[name])
                for name in ("shared", "revealed")
            }
            lines = {name: Line(**line) for name, line in facts["lines"].items()}
            plain = {name: tuple(facts[name]) for name in ("parties", "orders")}
            return cls(**{**facts, **opened, **plain, "lines": lines})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is no report of a session: {error!r}.") from None


class Meter(Protocol):
    """A protocol that counts what it is asked; all else is the protocol's own."""

    name = "meter"
    parties = 0
    corruption = "as the protocol that it counts"
    holdings = ()

    def __init__(self, protocol: Protocol, mesh: Mesh) -> None:
        super().__init__(mesh)
        self.protocol, self.fast_truncation = protocol, protocol.fast_truncation
        self.shared: list[Opened] = []
        self.revealed: list[Opened] = []
        self._began, self._busy = time.perf_counter(), time.process_time()
        self._lines: dict[str, Line] = {}
        self._rounds = self._sent = 0  # that lines have

    @contextmanager
    def operation(self, name: str, elements: int = 0) -> Iterator[None]:
        """Counts what happens inside under this name, but for rounds and bytes that have a name of their own there."""
        began, before = time.perf_counter(), self._unnamed()
        yield
        line = self._lines.setdefault(name, Line())
        line.calls += 1
        line.elements += elements
        line.seconds += time.perf_counter() - began
        self._name(line, before)

    def _unnamed(self) -> tuple[int, int]:
        """Rounds and bytes that no line has."""
        return self.mesh.counters.rounds - self._rounds, sum(self.mesh.counters.sent_bytes.values()) - self._sent

    def _name(self, line: Line, before: tuple[int, int]) -> None:
        """Gives a line what has come since then."""
        rounds, sent = self._unnamed()
        line.rounds += rounds - before[0]
        line.sent_bytes += sent - before[1]
        self._rounds += rounds - before[0]
        self._sent += sent - before[1]

    def report(self) -> Report:
        """Totals until now."""
        counters = self.mesh.counters
        return Report(
            me=self.mesh.me, parties=tuple(sorted((self.mesh.me, *self.mesh.peers))), protocol=self.protocol.name,
            lines={name: replace(line) for name, line in self._lines.items()}, shared=tuple(self.shared),
            revealed=tuple(self.revealed), orders=tuple(self.protocol.orders), sent_bytes=dict(counters.sent_bytes),
            rounds=counters.rounds, seconds=time.perf_counter() - self._began,
            busy_seconds=time.process_time() - self._busy,
        )  # fmt: skip

    def _counted(self, name: str, run: Any, *args: Any) -> Any:
        # As `operation`, for what is called thousands of times a second.
        began, before = time.perf_counter(), self._unnamed()
        result = run(*args)
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line()
        line.calls += 1
        line.elements += args[0].parts[0].numel()
        line.seconds += time.perf_counter() - began
        self._name(line, before)
        return result

    def input(self, value: Ring | None, shape: Sequence[int], owner: str) -> Share:
        """Counted under `share`."""
        return self.protocol.input(value, shape, owner)

    def constant(self, value: Ring) -> Share:
        """Costs nothing."""
        return self.protocol.constant(value)

    def constant_bits(self, value: torch.Tensor) -> Share:
        """Costs nothing."""
        return self.protocol.constant_bits(value)

    def open(self, share: Share, to: Sequence[str] | None = None) -> Ring | None:
        """Counted under `reveal`."""
        return self.protocol.open(share, to)

    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """Counted."""
        summands: Share = self._counted("product", self.protocol.product, x, y, op)
        return summands

    def settle(self, summands: Share, shift: int = 0) -> Share:
        """Counted."""
        name = "truncate" if shift else "reshare"
        share: Share = self._counted(name, self.protocol.settle, summands, shift)
        return share

    def summands(self, x: Share) -> Share:
        """Costs nothing."""
        return self.protocol.summands(x)

    def both(self, x: Share, y: Share) -> Share:
        """Counted."""
        share: Share = self._counted("and", self.protocol.both, x, y)
        return share

    def negative(self, x: Share) -> Share:
        """Counted."""
        share: Share = self._counted("compare", self.protocol.negative, x)
        return share

    def bits(self, x: Share) -> Share:
        """Counted."""
        share: Share = self._counted("bits", self.protocol.bits, x)
        return share

    def to_arithmetic(self, bit: Share) -> Share:
        """Counted."""
        share: Share = self._counted("to arithmetic", self.protocol.to_arithmetic, bit)
        return share

    def sorted(self, columns: Sequence[Share]) -> list[Share] | None:
        """Counted, if the protocol has a sort of its own."""
        if columns[0].shape[-1] < self.protocol.sorts_from:
            return None
        with self.operation("sort", columns[0].shape.numel()):
            return self.protocol.sorted(columns)

    def cost(self, operation: str, elements: int) -> Cost:
        """The protocol's own."""
        return self.protocol.cost(operation, elements)
