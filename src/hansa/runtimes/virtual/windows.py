"""When devices are there, by a trace of real times: intervals over days or weeks, which then begin again.

    0 ─────[ a ]────────[   a   ]──── span_s ─ as at 0 ─
    0 ──[      b     ]─────────────── span_s ─ as at 0 ─

A time in simulation is a place in the trace, modulo its span. An interval begins with its first moment and ends before
its last; one that ends where the next begins goes on, over the end of the span too.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hansa.core.errors import ConfigError
from hansa.runtimes.virtual.trace import table

COLUMNS = ("id", "start", "end")
EDGE_S = 1e-6  # so that rounding does not put the first moment of an interval before it
Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
Time = float | str | datetime


@dataclass(frozen=True, eq=False)
class Windows:
    """Intervals of many devices.

    Args:
      begins, ends: seconds since the trace's first moment, in order for each device, none meeting the next.
      first: device d has the intervals from first[d] to first[d + 1].
      span_s: after which all begins again; no interval ends later.
      shift_s: the place in the trace at which simulated time begins.
    """

    begins: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    first: np.ndarray = field(repr=False)
    span_s: float
    shift_s: float = 0.0

    def available(self, now: float) -> np.ndarray:
        """Which devices are there, as booleans."""
        _, at = self._place(now)
        there = (self.begins <= at) & (at < self.ends)
        return np.logical_or.reduceat(there, self.first[:-1])

    def ready(self, device: int, now: float) -> float:
        """The first time from `now` on at which a device is there."""
        lap, at = self._place(now)
        mine = slice(self.first[device], self.first[device + 1])
        begins, ends = self.begins[mine], self.ends[mine]
        after = int(np.searchsorted(ends, at, "right"))  # the interval that is on, or comes next
        if after == len(ends):
            return max(now, self._time(lap + 1, begins[0]))
        return now if begins[after] <= at else max(now, self._time(lap, begins[after]))

    def leaves(self, device: int, now: float) -> float:
        """The first time from `now` on at which a device is not there; inf if it never leaves."""
        lap, at = self._place(now)
        mine = slice(self.first[device], self.first[device + 1])
        begins, ends = self.begins[mine], self.ends[mine]
        on = int(np.searchsorted(begins, at, "right")) - 1
        if on < 0 or ends[on] <= at:
            return now
        if ends[on] < self.span_s or begins[0] > 0:
            return max(now, self._time(lap, ends[on]))
        return math.inf if on == 0 else max(now, self._time(lap + 1, ends[0]))

    def next_arrival(self, now: float) -> float:
        """The first time after `now` at which some device comes."""
        lap, at = self._place(now)
        later = self.begins[self.begins > at]
        return max(now, self._time(lap, later.min()) if len(later) else self._time(lap + 1, self.begins.min()))

    def _place(self, now: float) -> tuple[float, float]:
        """How often the trace has been through, and the place in it."""
        return divmod(now + self.shift_s + EDGE_S, self.span_s)

    def _time(self, lap: float, at: float) -> float:
        return float(lap * self.span_s + at - self.shift_s)


def read(
    source: Source, ids: Sequence[str] | None, count: int, *, begins: Time | None = None, span_s: float | None = None
) -> Windows:
    """The intervals of a fleet's devices; arguments and errors as in `Fleet.in_windows`."""
    rows = table(source, "one for each interval of a device")
    if any(set(row) != set(COLUMNS) for row in rows):
        found = sorted({name for row in rows for name in row})
        raise ConfigError(f"the trace has columns {found}: each row of availability has {', '.join(COLUMNS)}.")
    clock = _Clock()
    times = np.array(
        [[clock.seconds(row[name], f"row {at}: {name}") for name in COLUMNS[1:]] for at, row in enumerate(rows)]
    )
    backward = np.flatnonzero(times[:, 1] <= times[:, 0])
    if len(backward):
        row = rows[backward[0]]
        raise ConfigError(
            f"row {backward[0]}: device '{row['id']}' ends at {row['end']}, not after its start {row['start']}."
        )
    start = float(times[:, 0].min())
    length = float(times[:, 1].max()) - start
    span_s = length if span_s is None else span_s
    if not (length <= span_s < math.inf):
        raise ConfigError(f"span_s={span_s}: the trace alone lasts {length:g} s; it cannot begin again before.")
    shift = 0.0 if begins is None else clock.seconds(begins, "begins") - start
    places = _places(rows, ids, count)
    devices = np.array([_device(str(row["id"]), places) for row in rows])
    order = np.lexsort((times[:, 0], devices))
    order = order[devices[order] < count]  # a fleet without ids leaves out what is beyond it
    return Windows(*_joined(rows, devices, times - start, order, count), span_s=float(span_s), shift_s=shift)


def _places(rows: Sequence[Mapping[str, Any]], ids: Sequence[str] | None, count: int) -> dict[str, int]:
    """Device of the fleet by id in the trace: by name, or by first appearance where the fleet has no names."""
    seen = {str(row["id"]): 0 for row in rows}
    if ids is None:
        if len(seen) < count:
            raise ConfigError(f"the trace has {len(seen)} devices, the fleet {count}: give a longer trace.")
        return {name: at for at, name in enumerate(seen)}
    if missing := [name for name in ids if name not in seen]:
        raise ConfigError(f"device '{missing[0]}' has no interval in the trace: it would never be there; leave it out.")
    return {name: at for at, name in enumerate(ids)}


def _device(name: str, places: Mapping[str, int]) -> int:
    if name not in places:
        raise ConfigError(f"the trace has intervals of '{name}', but the fleet has no device of that id.")
    return places[name]


def _joined(
    rows: Sequence[Mapping[str, Any]], devices: np.ndarray, times: np.ndarray, order: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begins, ends and where each device's are, with intervals that meet made one."""
    device, begins, ends = devices[order], times[order, 0], times[order, 1]
    same = device[1:] == device[:-1]
    overlap = np.flatnonzero(same & (begins[1:] < ends[:-1] - EDGE_S))
    if len(overlap):
        one, other = sorted((int(order[overlap[0]]), int(order[overlap[0] + 1])))
        name, (a, b) = rows[one]["id"], (rows[one], rows[other])
        raise ConfigError(
            f"rows {one} and {other} overlap: device '{name}' is there from {a['start']} to {a['end']} and from "
            f"{b['start']} to {b['end']}; make them one."
        )
    meets = same & (begins[1:] <= ends[:-1] + EDGE_S)
    first, last = np.concatenate([[True], ~meets]), np.concatenate([~meets, [True]])
    return begins[first], ends[last], np.searchsorted(device[first], np.arange(count + 1))


class _Clock:
    """Reads the times of one trace, which are all of one kind: seconds, dates with a time zone, or dates without."""

    def __init__(self) -> None:
        self._kind = self._example = ""

    def seconds(self, cell: Any, what: str) -> float:
        """Since an epoch: a number's own, or that of dates, where one without a zone is taken as it stands."""
        value = _parsed(cell, what)
        kind = (
            "seconds" if isinstance(value, float) else "dates with a time zone" if value.tzinfo else "dates without one"
        )
        if kind != (self._kind or kind):
            raise ConfigError(
                f"{what}={cell} is of another kind than {self._example}: all times of a trace are seconds, dates with "
                "a time zone, or dates without one."
            )
        if not self._kind:
            self._kind, self._example = kind, f"{what}={cell}"
        if isinstance(value, float):
            return value
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _parsed(cell: Any, what: str) -> float | datetime:
    if isinstance(cell, datetime):
        return cell
    try:
        seconds = float(cell) if not isinstance(cell, bool) else math.nan
    except (TypeError, ValueError):
        try:
            return datetime.fromisoformat(cell.strip())
        except (AttributeError, ValueError):
            seconds = math.nan
    if not math.isfinite(seconds):
        raise ConfigError(f"{what}={cell!r}: give seconds, or a date and time as in 2024-05-01T22:30:00+02:00.")
    return seconds
