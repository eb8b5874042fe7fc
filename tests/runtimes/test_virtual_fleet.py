"""Fleets: what generators promise, what traces may hold, and what bad ones are told."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.errors import ConfigError, NotFound
from hansa.runtimes.virtual.device import ALWAYS, Device, hour_mask, hour_text
from hansa.runtimes.virtual.fleet import TIERS, Fleet

MAKERS: dict[str, Any] = {
    "homogeneous": lambda seed: Fleet.homogeneous(500),
    "lognormal": lambda seed: Fleet.lognormal(500, sigma=1.0, seed=seed),
    "tiers": lambda seed: Fleet.tiers(500, seed=seed),
    "time zones": lambda seed: Fleet.tiers(500, seed=seed).in_time_zones(seed=seed),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_seed_decides_a_fleet(make: Any) -> None:
    one, two, other = make(1), make(1), make(2)
    assert all((one.columns[name] == two.columns[name]).all() for name in one.columns)
    same = all((one.columns[name] == other.columns[name]).all() for name in one.columns)
    assert same == (make is MAKERS["homogeneous"])


def test_lognormal_speeds_have_the_median_and_spread_asked_for() -> None:
    speed = np.log(Fleet.lognormal(20_000, median=Device(examples_per_s=50), sigma=0.7).columns["examples_per_s"])
    assert np.median(speed) == pytest.approx(np.log(50), abs=0.03)
    assert speed.std() == pytest.approx(0.7, abs=0.02)


def test_tiers_come_in_their_shares() -> None:
    fleet = Fleet.tiers(20_000, sigma=0, seed=1)
    for share, device in TIERS.values():
        found = np.isclose(fleet.columns["examples_per_s"], device.examples_per_s).mean()
        assert found == pytest.approx(share, abs=0.02)


def test_devices_in_time_zones_are_there_at_their_night() -> None:
    fleet = Fleet.homogeneous(20_000).in_time_zones(zones={0: 1}, hours=(22, 8), seed=1)
    there = [fleet.available(hour * 3600.0).mean() for hour in range(24)]
    assert min(there[1:4]) > 0.85 and max(there[11:18]) < 0.05
    world = Fleet.homogeneous(20_000).in_time_zones(seed=1)
    assert min(world.available(hour * 3600.0).mean() for hour in range(24)) > 0.1  # somewhere it is night


def test_a_million_devices_cost_their_columns_and_open_no_client() -> None:
    tracemalloc.start()
    fleet = Fleet.tiers(1_000_000, seed=1).in_time_zones(seed=1)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 60e6
    assert 0.1 < fleet.available(0.0).mean() < 0.9


def test_one_value_for_all_is_not_repeated_in_memory() -> None:
    assert Fleet.homogeneous(1_000_000).columns["dropout"].strides == (0,)


def test_a_fleet_of_devices_gives_them_back() -> None:
    devices = [Device(examples_per_s=2.0, hours="22-6"), Device(step_s=0.5, utc_offset_h=-3.5, memory_gb=4.0)]
    back = [Fleet.of(devices)[at] for at in range(2)]
    assert [device.hours for device in back] == ["22-6", "0-24"]
    assert (back[1].step_s, back[1].utc_offset_h, back[1].memory_gb) == (0.5, -3.5, 4.0)


@pytest.mark.parametrize("hours", ["0-24", "22-6", "0-8,18-24", "5-6", "1-2,3-4,23-24", "0-23"])
def test_hours_survive_their_text(hours: str) -> None:
    assert hour_mask(hour_text(hour_mask(hours))) == hour_mask(hours)
    assert 0 < hour_mask(hours) <= ALWAYS


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ROWS = [
    {"id": "b", "examples_per_s": 5.0, "hours": "22-6", "dropout": 0.25},
    {"id": "a", "examples_per_s": 50.0, "hours": None, "dropout": None},
]


def check(fleet: Fleet) -> None:
    assert fleet.places(["a", "b"]).tolist() == [1, 0]
    assert fleet["b"] == Device(examples_per_s=5.0, hours="22-6", dropout=0.25, latency_s=fleet["b"].latency_s)
    assert (fleet["a"].hours, fleet["a"].dropout) == ("0-24", 0.0)  # empty cells are defaults


def test_a_trace_from_records() -> None:
    check(Fleet.from_trace(ROWS))


def test_a_trace_from_csv(tmp_path: Path) -> None:
    file = tmp_path / "devices.csv"
    file.write_text("id,examples_per_s,hours,dropout\nb,5,22-6,0.25\na,50,,\n", encoding="utf-8")
    check(Fleet.from_trace(file))


def test_a_trace_from_parquet(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "devices.parquet")
    check(Fleet.from_trace(str(tmp_path / "devices.parquet")))


def test_a_trace_without_ids_goes_by_order() -> None:
    assert Fleet.from_trace([{"examples_per_s": 5}, {"examples_per_s": 6}]).places(["x", "y"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the trace has no rows"),
        ([{"speed": 3}], r"the trace has columns \['speed'\]: a device has examples_per_s"),
        ([{"examples_per_s": "fast"}], "row 0 of the trace: examples_per_s='fast' is no number"),
        ([{"examples_per_s": 1}, {"examples_per_s": -1}], "examples_per_s=-1 of device 1: a number above 0"),
        ([{"dropout": 1.5}], "dropout=1.5 of device 0: a number at least 0 and at most 1"),
        ([{"hours": "night"}], "hours='night': give hours of the local day, as in '22-6'"),
        ([{"hours": "5-5"}], "'5-5' holds no hour: write '0-24' for the whole day"),
        ([{"id": "a"}, {"id": "a"}], "1 different ids for 2 devices: each device has one of its own"),
    ],
)
def test_bad_traces_say_what_is_wrong(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fleet.from_trace(rows)


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no trace at"):
        Fleet.from_trace(tmp_path / "none.csv")
    (tmp_path / "devices.txt").write_text("a", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a trace is a file that ends in .csv or .json or .parquet"):
        Fleet.from_trace(tmp_path / "devices.txt")
    (tmp_path / "devices.parquet").write_text("no parquet", encoding="utf-8")
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        Fleet.from_trace(tmp_path / "devices.parquet")


def test_bad_fleets_and_devices_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="count=0: a fleet has at least one device"):
        Fleet(0)
    with pytest.raises(ConfigError, match=r"a device has no \['speed'\]"):
        Fleet(2, {"speed": 1})
    with pytest.raises(ConfigError, match=r"'dropout' has shape \(3,\): one value for each of 2 devices is needed"):
        Fleet(2, {"dropout": [0, 0, 0]})
    with pytest.raises(ConfigError, match="the column 'latency_s' holds something that is no number"):
        Fleet(2, {"latency_s": "soon"})
    with pytest.raises(ConfigError, match="examples_per_s=0: a number above 0"):
        Device(examples_per_s=0)
    with pytest.raises(ConfigError, match="dropout='often': a number at least 0 and at most 1"):
        Device(dropout="often")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sigma=-1: the spread of logarithms"):
        Fleet.lognormal(3, sigma=-1)
    with pytest.raises(ConfigError, match="at least one time zone has a share above 0"):
        Fleet(3).in_time_zones(zones={})
    with pytest.raises(ConfigError, match="at least one tier has a share above 0"):
        Fleet.tiers(3, tiers={})
    with pytest.raises(ConfigError, match="the fleet has no device for client 'z'"):
        Fleet.from_trace(ROWS).places(["a", "z"])
