"""A population of devices as arrays: a million of them cost some forty bytes each.

    Fleet.homogeneous(100)                          all alike
    Fleet.lognormal(100, sigma=1.0, seed=1)         speeds and links over orders of magnitude
    Fleet.tiers(100, seed=1).in_time_zones(seed=1)  phones, tablets and laptops that are there at night
    Fleet.from_trace("devices.csv")                 measured ones
    Fleet.tiers(100, seed=1).in_windows("there.csv")  and there when measured ones were

The n-th device belongs to the n-th client in sorted order; a trace with ids says itself whose it is.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hansa.core.errors import ConfigError
from hansa.runtimes.virtual import windows as availability
from hansa.runtimes.virtual.device import ALWAYS, BOUNDS, COLUMNS, DAY_H, Device, expected, hour_mask, hour_text
from hansa.runtimes.virtual.windows import Source, Time, Windows

HOUR_S = 3600.0
EDGE_H = 1e-9  # so that rounding does not put the first moment of an hour into the hour before

TIERS: dict[str, tuple[float, Device]] = {
    "phone": (0.6, Device(examples_per_s=40, down_bytes_per_s=1e6, up_bytes_per_s=2.5e5, latency_s=0.2, memory_gb=3)),
    "tablet": (0.25, Device(examples_per_s=100, down_bytes_per_s=3e6, up_bytes_per_s=8e5, latency_s=0.1, memory_gb=6)),
    "laptop": (
        0.15,
        Device(examples_per_s=400, down_bytes_per_s=1e7, up_bytes_per_s=3e6, latency_s=0.05, memory_gb=16),
    ),
}
"""Name -> (share of the fleet, device): orders of magnitude, not measurements."""

# Share of people by time zone, coarsely: the Americas, Europe and Africa, India, East Asia.
ZONES: dict[float, float] = {-8: 0.05, -5: 0.1, -3: 0.05, 0: 0.1, 1: 0.15, 3: 0.1, 5.5: 0.2, 8: 0.2, 9: 0.05}


class Fleet:
    """Devices, column by column; never changed, `with_` gives another.

    Args:
      count: how many.
      columns: fields of `Device`, each one value for all or an array of `count`; what is not named has its default.
      ids: the client of each device; None for the clients in sorted order.
      windows: when devices are there, instead of `hours`; `in_windows` reads them.

    Raises:
      ConfigError: an unknown column, a value out of its range, arrays that do not meet, or hours and windows.

    >>> fleet = Fleet(3, {"examples_per_s": [10, 20, 30], "hours": "22-6"})
    >>> len(fleet), fleet[1].examples_per_s, fleet.available(3600.0).tolist()
    (3, 20.0, [True, True, True])
    """

    def __init__(
        self, count: int, columns: Mapping[str, Any] | None = None, ids: Sequence[str] | None = None,
        windows: Windows | None = None,
    ) -> None:  # fmt: skip
        if count < 1:
            raise ConfigError(f"count={count}: a fleet has at least one device.")
        given = dict(columns or {})
        if unknown := sorted(set(given) - set(COLUMNS)):
            raise ConfigError(f"a device has no {unknown}: its columns are {', '.join(COLUMNS)}.")
        self.count = count
        self.columns = {name: _column(name, given.get(name, getattr(Device(), name)), count) for name in COLUMNS}
        self._place: dict[str, int] | None = None
        if ids is not None:
            self._place = {str(name): at for at, name in enumerate(ids)}
            if len(ids) != count or len(self._place) != count:
                raise ConfigError(
                    f"{len(self._place)} different ids for {count} devices: each device has one of its own."
                )
        self._always = bool((self.columns["hours"] == ALWAYS).all())
        self._windows = windows
        if windows is not None and not self._always:
            raise ConfigError("a fleet has hours or windows, not both: with_(hours='0-24') takes the hours away.")

    # -- ways to make one

    @staticmethod
    def homogeneous(count: int, device: Device | None = None) -> "Fleet":
        """All alike; `device` says how."""
        device = device or Device()
        return Fleet(count, {name: getattr(device, name) for name in COLUMNS})

    @staticmethod
    def of(devices: Iterable[Device], ids: Sequence[str] | None = None) -> "Fleet":
        """These devices, one by one."""
        given = list(devices)
        return Fleet(len(given), {name: [getattr(device, name) for device in given] for name in COLUMNS}, ids)

    @staticmethod
    def lognormal(count: int, *, median: Device | None = None, sigma: float = 1.0, seed: int = 0) -> "Fleet":
        """Speeds and links that are log-normal about those of `median`, independently.

        Args:
          count: devices.
          median: the device in the middle.
          sigma: standard deviation of the logarithms; 1 makes the ninth decile 13 times as fast as the first.
          seed: of the draws.
        """
        fleet = Fleet.homogeneous(count, median)
        return fleet._spread(sigma, np.random.default_rng(seed))

    @staticmethod
    def tiers(
        count: int, *, tiers: Mapping[str, tuple[float, Device]] | None = None, sigma: float = 0.3, seed: int = 0
    ) -> "Fleet":
        """A mixture of kinds of devices, each log-normal about its median.

        Args:
          count: devices.
          tiers: name to (share, device); `TIERS` (phones, tablets, laptops) if None.
          sigma: spread within a tier, as in `lognormal`.
          seed: of the draws.
        """
        kinds = list((TIERS if tiers is None else tiers).values())
        shares = np.array([share for share, _ in kinds], float)
        if not kinds or not (shares >= 0).all() or not shares.sum() > 0:
            raise ConfigError(f"tiers={tiers}: at least one tier has a share above 0.")
        rng = np.random.default_rng(seed)
        kind = rng.choice(len(kinds), count, p=shares / shares.sum())
        columns = {
            name: np.array([_encoded(name, getattr(device, name)) for _, device in kinds])[kind] for name in COLUMNS
        }
        return Fleet(count, columns)._spread(sigma, rng)

    @staticmethod
    def from_trace(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> "Fleet":
        """Devices that were measured: a file, or records.

        Args:
          source: one row for each device, in CSV, JSON, Parquet or as records. Columns are the fields of `Device` and,
            if wanted, `id`; an empty cell, or a column that is not there, is the default.

        >>> Fleet.from_trace([{"id": "b", "examples_per_s": 5}, {"id": "a", "hours": "20-24"}])["b"].examples_per_s
        5.0
        """
        from hansa.runtimes.virtual.trace import read

        rows = read(source)
        ids = [str(row["id"]) for row in rows] if rows and all("id" in row for row in rows) else None
        names = sorted({name for row in rows for name in row} - {"id"})
        default = Device()
        if unknown := sorted(set(names) - set(COLUMNS)):
            raise ConfigError(f"the trace has columns {unknown}: a device has {', '.join(COLUMNS)}, and an id.")
        columns = {name: [row.get(name, getattr(default, name)) for row in rows] for name in names}
        return Fleet(len(rows), columns, ids)

    def with_(self, **columns: Any) -> "Fleet":
        """This fleet with columns replaced, each by one value for all or by an array."""
        return Fleet(self.count, {**self.columns, **columns}, self._ids(), self._windows)

    def in_windows(self, source: Source, *, begins: Time | None = None, span_s: float | None = None) -> "Fleet":
        """This fleet with devices that are there when a trace says so, over days or weeks.

        Args:
          source: one row for each interval of a device, in CSV, JSON, Parquet or as records, with the columns `id`,
            `start` and `end`. Times are seconds, or dates in ISO 8601, all with a time zone or all without. A fleet
            with ids finds its devices by them; else its n-th device is the n-th one that the trace names, and what the
            trace has beyond is left out.
          begins: the time in the trace at which simulated time begins; its first start if None.
          span_s: seconds after which the trace begins again; from its first start to its last end if None. A week
            keeps days of the week in their places.

        Raises:
          ConfigError: another column, times of different kinds, an end that is not after its start, intervals of one
            device that overlap, a device that the fleet does not have or the trace does not, a span shorter than the
            trace, or a fleet that has hours.
          NotFound: there is no such file.
          MissingExtra: Parquet needs pyarrow.

        >>> fleet = Fleet(2).in_windows([{"id": 7, "start": 0, "end": 60}, {"id": 9, "start": 30, "end": 100}])
        >>> fleet.available(45.0).tolist(), fleet.available(70.0).tolist(), fleet.ready(0, 70.0), fleet.leaves(0, 100.0)
        ([True, True], [False, True], 100.0, 160.0)
        """
        windows = availability.read(source, self._ids(), self.count, begins=begins, span_s=span_s)
        return Fleet(self.count, self.columns, self._ids(), windows)

    def in_time_zones(
        self, *, zones: Mapping[float, float] | None = None, hours: tuple[float, float] = (22, 8), sigma_h: float = 1.5,
        seed: int = 0,
    ) -> "Fleet":  # fmt: skip
        """This fleet spread over the world, each device there for some hours of its night.

        Args:
          zones: offset from UTC in hours to share of the fleet; `ZONES` if None.
          hours: when the typical device comes, and for how many hours it stays.
          sigma_h: standard deviation of both.
          seed: of the draws.
        """
        rng, given = np.random.default_rng(seed), ZONES if zones is None else zones
        shares = np.array(list(given.values()), float)
        if not len(shares) or not (shares >= 0).all() or not shares.sum() > 0:
            raise ConfigError(f"zones={zones}: at least one time zone has a share above 0.")
        offsets = np.array(list(given))[rng.choice(len(shares), self.count, p=shares / shares.sum())]
        begin = np.rint(rng.normal(hours[0], sigma_h, self.count)).astype(int) % DAY_H
        length = np.clip(np.rint(rng.normal(hours[1], sigma_h, self.count)), 1, DAY_H).astype(int)
        mask = np.zeros(self.count, np.uint32)
        for hour in range(DAY_H):
            mask |= (((hour - begin) % DAY_H < length).astype(np.uint32)) << np.uint32(hour)
        return self.with_(hours=mask, utc_offset_h=offsets)

    def _ids(self) -> list[str] | None:
        return None if self._place is None else list(self._place)

    def _spread(self, sigma: float, rng: np.random.Generator) -> "Fleet":
        if not 0 <= sigma <= 10:
            raise ConfigError(f"sigma={sigma}: the spread of logarithms, between 0 and 10.")
        old, drawn = self.columns, {}
        for name in ("examples_per_s", "down_bytes_per_s", "up_bytes_per_s"):
            drawn[name] = old[name] * np.exp(sigma * rng.standard_normal(self.count, np.float32))
        drawn["step_s"] = old["step_s"] * np.exp(-sigma * rng.standard_normal(self.count, np.float32))
        return self.with_(**drawn)

    # -- one device

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        speed = self.columns["examples_per_s"]
        return f"Fleet({self.count} devices of {speed.min():.3g} to {speed.max():.3g} examples/s)"

    def __getitem__(self, device: int | str) -> Device:
        """A device by its number, or by its client's id where the fleet has ids; without its windows."""
        at = self.place(device) if isinstance(device, str) else device
        values = {name: column[at].item() for name, column in self.columns.items()}
        return Device(**{**values, "hours": hour_text(values["hours"])})

    def place(self, client: str) -> int:
        """The device of a client; ConfigError if the trace has none for it."""
        if self._place is None or client not in self._place:
            raise ConfigError(f"the fleet has no device for client '{client}': name it in the trace's column `id`.")
        return self._place[client]

    def places(self, clients: Sequence[str]) -> np.ndarray:
        """The device of each client; ConfigError if there are too few.

        Without ids the n-th client has the n-th device.
        """
        if self._place is not None:
            return np.array([self.place(client) for client in clients], np.int64)
        if len(clients) > self.count:
            raise ConfigError(f"{len(clients)} clients, but the fleet has {self.count} devices: make it as large.")
        return np.arange(len(clients))

    # -- time

    def seconds(
        self, devices: Any, *, down_bytes: Any, examples: Any, steps: Any, up_bytes: Any
    ) -> tuple[Any, Any, Any]:
        """Seconds to download, compute and upload, without jitter; for one device or an array of them."""
        rate = self.columns
        latency = rate["latency_s"][devices].astype(float)
        download = latency + down_bytes / rate["down_bytes_per_s"][devices].astype(float)
        speed, step_s = rate["examples_per_s"][devices].astype(float), rate["step_s"][devices].astype(float)
        upload = latency + up_bytes / rate["up_bytes_per_s"][devices].astype(float)
        return download, examples / speed + steps * step_s, upload

    def available(self, now: float) -> np.ndarray:
        """Which devices are there at a simulated time, as booleans."""
        if self._windows is not None:
            return self._windows.available(now)
        if self._always:
            return np.ones(self.count, bool)
        hour = np.floor(now / HOUR_S + self.columns["utc_offset_h"] + EDGE_H).astype(np.int64) % DAY_H
        return (self.columns["hours"] >> hour.astype(np.uint32) & np.uint32(1)).astype(bool)

    def ready(self, device: int, now: float) -> float:
        """The first time from `now` on at which a device is there."""
        if self._windows is not None:
            return self._windows.ready(device, now)
        return self._change(device, now, there=True)

    def leaves(self, device: int, now: float) -> float:
        """The first time from `now` on at which a device is not there; inf if it never leaves."""
        if self._windows is not None:
            return self._windows.leaves(device, now)
        return math.inf if self.columns["hours"][device] == ALWAYS else self._change(device, now, there=False)

    def next_arrival(self, now: float) -> float:
        """The first time after `now` at which a device may come."""
        if self._windows is not None:
            return self._windows.next_arrival(now)
        return math.floor(now / HOUR_S + 1) * HOUR_S

    @property
    def period_s(self) -> float:
        """After which devices come and go as before: a day, or the span of the trace."""
        return DAY_H * HOUR_S if self._windows is None else self._windows.span_s

    def _change(self, device: int, now: float, there: bool) -> float:
        mask, offset = int(self.columns["hours"][device]), float(self.columns["utc_offset_h"][device])
        hour = math.floor(now / HOUR_S + offset + EDGE_H)
        if bool(mask >> hour % DAY_H & 1) == there:
            return now
        while bool(mask >> hour % DAY_H & 1) != there:
            hour += 1
        return max(now, (hour - offset) * HOUR_S)


def _encoded(name: str, value: Any) -> Any:
    return hour_mask(value) if name == "hours" and isinstance(value, str) else value


def _column(name: str, given: Any, count: int) -> np.ndarray:
    """One column, checked; a value for all is not repeated in memory."""
    values = given
    if name == "hours":
        listed = isinstance(values, Iterable) and not isinstance(values, str | np.ndarray)
        values = [_encoded(name, value) for value in values] if listed else _encoded(name, values)
    try:
        column = np.asarray(values, np.uint32 if name == "hours" else np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"the column '{name}' holds something that is no number: {error}.") from None
    if column.ndim and column.shape != (count,):
        raise ConfigError(
            f"the column '{name}' has shape {column.shape}: one value for each of {count} devices is needed."
        )
    if name == "hours":
        bad = (column == 0) | (column > ALWAYS)
        wanted = "at least one hour of the day"
    else:
        low, high, open_below = BOUNDS[name]
        bad = ~((column > low if open_below else column >= low) & (column <= high))
        wanted = expected(name)
    if bad.any():
        first = int(np.flatnonzero(np.atleast_1d(bad))[0])
        raise ConfigError(f"{name}={np.atleast_1d(column)[first]:g} of device {first}: {wanted}.")
    return np.broadcast_to(column, (count,)) if not column.ndim else column
