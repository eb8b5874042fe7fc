"""Devices that are there by a trace of real times: the laws of intervals, of their files, and of rounds among them."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hansa.core.errors import ConfigError, NotFound
from hansa.core.sampling import Fixed
from hansa.runtimes.virtual.device import Device
from hansa.runtimes.virtual.fleet import Fleet
from hansa.runtimes.virtual.schedulers import Random
from hansa.runtimes.virtual.sharing import Shared
from tests.runtimes.test_virtual import run, sampled
from tests.runtimes.test_virtual_sharing import Ragged, three

DAY = 86400.0
Trace = list[dict[str, Any]]


def rows(**devices: list[tuple[Any, Any]]) -> Trace:
    return [{"id": name, "start": a, "end": b} for name, spans in devices.items() for a, b in spans]


@st.composite
def traces(draw: st.DrawFn) -> tuple[Trace, float, float]:
    """Whole seconds, so that a reference may go through them one by one; intervals may meet, and wrap."""
    found: Trace = []
    for device in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=8)))
        spans = list(pairwise(cuts))
        keep = draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans)))
        keep[0] = keep[0] or not any(keep)
        found += [{"id": device, "start": a, "end": b} for (a, b), kept in zip(spans, keep, strict=True) if kept]
    first = min(row["start"] for row in found)
    last = max(row["end"] for row in found)
    return found, float(last - first + draw(st.integers(0, 5))), float(draw(st.integers(-60, 60)))


@given(traces(), st.integers(0, 200))
def test_windows_are_what_going_through_them_second_by_second_finds(
    trace: tuple[Trace, float, float], now: int
) -> None:
    found, span_s, begins = trace
    first = min(row["start"] for row in found)
    devices = list(dict.fromkeys(row["id"] for row in found))
    fleet = Fleet(len(devices)).in_windows(found, begins=begins, span_s=span_s)

    def there(device: int, second: int) -> bool:
        at = (second + begins - first) % span_s
        spans = [row for row in found if row["id"] == devices[device]]
        return any(row["start"] - first <= at < row["end"] - first for row in spans)

    horizon = range(now, now + int(span_s) + 1)
    assert fleet.available(now).tolist() == [there(device, now) for device in range(len(devices))]
    for device in range(len(devices)):
        assert fleet.ready(device, now) == next(second for second in horizon if there(device, second))
        left = next((second for second in horizon if not there(device, second)), float("inf"))
        assert fleet.leaves(device, now) == left
    comes = fleet.next_arrival(now)
    assert now < comes <= now + span_s
    # In between nobody comes who was not there.
    for second in range(now + 1, int(comes)):
        assert all(there(d, second - 1) or not there(d, second) for d in range(len(devices)))


def test_times_of_an_epoch_keep_their_microseconds_over_a_year_of_laps() -> None:
    base = 1.7e9
    fleet = Fleet(1).in_windows(rows(a=[(base, base + 0.25), (base + 1, base + 1.75)]), span_s=2.0)
    now = 0.0
    for lap in range(0, 15_000_000, 1_234_567):
        now = lap * 2.0
        assert fleet.leaves(0, now) == now + 0.25
        assert fleet.ready(0, now + 0.25) == now + 1
        assert fleet.available(now + 1).tolist() == [True]


def test_seconds_dates_and_time_zones_say_the_same() -> None:
    begin = datetime(2024, 5, 1, 22, tzinfo=UTC)
    spans = [(0, 3600), (7200, 10800)]
    east = timezone(timedelta(hours=2))
    kinds: dict[str, Trace] = {
        "seconds": rows(a=[(begin.timestamp() + a, begin.timestamp() + b) for a, b in spans]),
        "text": rows(a=[(str(begin.timestamp() + a), str(begin.timestamp() + b)) for a, b in spans]),
        "aware": rows(
            a=[(begin + timedelta(seconds=a), (begin + timedelta(seconds=b)).astimezone(east)) for a, b in spans]
        ),
        "iso": rows(
            a=[("2024-05-01T22:00:00Z", "2024-05-02T01:00:00+02:00"), ("2024-05-02T00:00Z", "2024-05-02 01:00Z")]
        ),
        "naive": rows(a=[("2024-05-01T22:00", "2024-05-01 23:00"), ("2024-05-02", "2024-05-02T01")]),
    }
    for trace in kinds.values():
        fleet = Fleet(1).in_windows(trace, span_s=DAY)
        times = [fleet.leaves(0, 0.0), fleet.ready(0, 3600.0), fleet.leaves(0, 7200.0), fleet.ready(0, 10800.0)]
        assert times == [3600.0, 7200.0, 10800.0, DAY]
    later = Fleet(1).in_windows(kinds["iso"], begins="2024-05-02T00:30:00Z", span_s=DAY)
    assert later.leaves(0, 0.0) == 1800.0


@pytest.mark.parametrize("kind", [".csv", ".json", ".parquet"])
def test_a_trace_is_read_from_files(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"there{kind}"
    found = rows(b=[(0.0, 60.0)], a=[(30.0, 100.0)])
    if kind == ".csv":
        file.write_text(
            "id,start,end\n" + "".join(f"{r['id']},{r['start']},{r['end']}\n" for r in found), encoding="utf-8"
        )
    elif kind == ".json":
        file.write_text(json.dumps(found), encoding="utf-8")
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        times = {name: [datetime.fromtimestamp(row[name], UTC) for row in found] for name in ("start", "end")}
        parquet.write_table(pa.table({"id": ["b", "a"], **times}), file)
    fleet = Fleet.of([Device(), Device()], ids=["a", "b"]).in_windows(file)
    assert [fleet.available(t).tolist() for t in (10.0, 50.0, 90.0)] == [[False, True], [True, True], [True, False]]


def test_a_fleet_without_ids_takes_the_traces_first_devices() -> None:
    fleet = Fleet(2).in_windows(rows(z=[(0, 10)], y=[(10, 20)], x=[(20, 40)]))
    assert fleet.period_s == 40 and fleet.available(5.0).tolist() == [True, False]
    assert not fleet.available(30.0).any()


def test_columns_may_change_and_windows_stay() -> None:
    fleet = Fleet(1).in_windows(rows(a=[(0, 10)]), span_s=20).with_(dropout=0.5)
    assert fleet.columns["dropout"][0] == 0.5 and fleet.leaves(0, 5.0) == 10.0


# ── rounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def always(count: int, **others: list[tuple[float, float]]) -> Trace:
    """`count` clients that never leave within a week, but for those named by number."""
    return rows(**{f"client-{n}": others.get(f"c{n}", [(0.0, 7 * DAY)]) for n in range(count)})


def test_a_device_whose_window_closes_in_mid_round_drops_out() -> None:
    job = replace(sampled(), sampling=Fixed(6, quorum=5), rounds=1)
    fleet = Fleet(6, {"examples_per_s": [0.001, 100, 100, 100, 100, 100]})
    history = run(job, fleet.in_windows(always(6, c0=[(0.0, 5000.0), (6000.0, 7 * DAY)])))
    assert history.seconds == 5000.0 and dict(history.rounds[0].dropped) == {"client-0": "its device's hours ended"}
    assert history.tally.failures == 1


def test_a_round_waits_for_a_device_s_next_window_and_over_the_end_of_the_trace() -> None:
    job = replace(sampled(), sampling=Fixed(6), rounds=2)
    fleet = Fleet(6).in_windows(always(6, c3=[(2 * DAY, 3 * DAY)]), begins=0.0)
    waited = run(job, fleet)
    assert waited.rounds[0].seconds > 2 * DAY > waited.rounds[1].seconds
    wrapped = run(job, Fleet(6).in_windows(always(6, c3=[(2 * DAY, 3 * DAY)]), begins=5 * DAY))
    assert 4 * DAY < wrapped.rounds[0].seconds < 4 * DAY + 3600


def test_only_those_that_are_there_are_asked_days_later_too() -> None:
    job = replace(sampled(), sampling=Fixed(3), rounds=1)
    late = [(4 * DAY + 100.5, 5 * DAY)]
    fleet = Fleet(6).in_windows(always(6, c1=late, c2=late, c4=late, c5=late), begins=0.0)
    history = run(job, fleet, ask_available=True)
    assert 4 * DAY + 100.5 < history.seconds < 4 * DAY + 3600 and history.tally.failures == 0
    apart = always(4, **{f"c{n}": [(n * DAY, n * DAY + 60.0)] for n in range(4)})
    with pytest.raises(ConfigError, match="at no hour are 3 devices there: lower cohort, or widen their hours"):
        run(job, Fleet(6).in_windows(apart + rows(e=[(5 * DAY, 6 * DAY)], f=[(6 * DAY, 7 * DAY)])), ask_available=True)


def test_jobs_that_share_a_fleet_wait_for_its_windows() -> None:
    night = [(5 * DAY, 5.5 * DAY)]
    trace = rows(**{f"{n:03}": [(0.0, 1800.0), *night] if n else [(0.0, 7 * DAY)] for n in range(40)})
    fleet = Fleet.lognormal(40, seed=1).in_windows(trace, begins=3600.0)
    light = replace(three(2)["light"], cohort=None, sampling=Fixed(30))
    result = Shared({"light": light}, Ragged(), fleet, Random()).run()
    # After two days it takes the one that is there, and goes on so.
    assert result.makespan_s > 2 * DAY and result.histories["light"].tally.published == 2
    early = Shared({"light": light}, Ragged(), fleet.in_windows(trace), Random())
    assert early.run().makespan_s < 1800.0


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────

UNKNOWN = rows(a=[(0, 1)], b=[(0, 1)], stranger=[(0, 1)])


@pytest.mark.parametrize(
    ("trace", "options", "message"),
    [
        ([], {}, "the trace has no rows: one for each interval of a device is needed"),
        ([{"id": "a", "from": 1, "end": 2}], {}, r"columns \['end', 'from', 'id'\]: each row of .* id, start, end"),
        ([*rows(a=[(0, 1)]), {"id": "b", "start": 3, "end": None}], {}, "each row of availability has id, start, end"),
        (rows(a=[(5, 3)], b=[(0, 1)]), {}, "row 0: device 'a' ends at 3, not after its start 5"),
        (rows(a=[(3, 3)], b=[(0, 1)]), {}, "row 0: device 'a' ends at 3, not after its start 3"),
        (rows(a=[(5, 9), (1, 2), (0, 6)], b=[(0, 1)]), {}, "rows 1 and 2 overlap: device 'a' is there from 1 to 2"),
        (rows(a=[(0, 9), (0, 9)], b=[(0, 1)]), {}, "rows 0 and 1 overlap: device 'a'"),
        (UNKNOWN, {}, "the trace has intervals of 'stranger', but the fleet has no device of that id"),
        (rows(a=[(0, 1)]), {}, "device 'b' has no interval in the trace: it would never be there; leave it out"),
        (rows(a=[("soon", 1)]), {}, "row 0: start='soon': give seconds, or a date and time as in 2024-05-01T22:30"),
        (rows(a=[(0, True)]), {}, "row 0: end=True: give seconds"),
        (rows(a=[(0, float("inf"))]), {}, "row 0: end=inf: give seconds"),
        (rows(a=[(0, 1)], b=[("2024-05-01", 5)]), {}, "row 1: start=2024-05-01 is of another kind than row 0: start=0"),
        (rows(a=[("2024-05-01", "2024-05-02T00:00Z")]), {}, "row 0: end=.* is of another kind .* with a time zone"),
        (rows(a=[(0, 9)], b=[(0, 1)]), {"begins": "2024-05-01"}, "begins=2024-05-01 is of another kind than row 0"),
        (rows(a=[(10, 19)], b=[(5, 6)]), {"span_s": 13.0}, "span_s=13.0: the trace alone lasts 14 s"),
        (rows(a=[(10, 19)], b=[(5, 6)]), {"span_s": float("nan")}, "span_s=nan: the trace alone lasts 14 s"),
    ],
)  # fmt: skip
def test_bad_traces_say_what_is_wrong(trace: Trace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fleet(2, ids=["a", "b"]).in_windows(trace, **options)


def test_bad_fleets_and_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a fleet has hours or windows, not both"):
        Fleet(1, {"hours": "2-3"}).in_windows(rows(a=[(0, 1)]))
    with pytest.raises(ConfigError, match="a fleet has hours or windows, not both"):
        Fleet(1).in_windows(rows(a=[(0, 1)])).in_time_zones()
    with pytest.raises(ConfigError, match="the trace has 1 devices, the fleet 2: give a longer trace"):
        Fleet(2).in_windows(rows(a=[(0, 1)]))
    with pytest.raises(NotFound, match="no trace at"):
        Fleet(1).in_windows(tmp_path / "none.csv")
    for name, text, message in (
        ("a.json", b"{", "'a.json' is no JSON file"),
        ("b.json", b'{"id": 1}', "'b.json': a trace in JSON is a list of objects"),
        ("c.json", b"\xff\xfe", "'c.json' is no JSON file"),
        ("d.csv", b"\xff\xfe", "'d.csv' is no CSV file"),
        ("e.csv", b"", "the trace has no rows"),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ConfigError, match=message):
            Fleet(1).in_windows(tmp_path / name)
