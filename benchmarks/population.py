"""Populations of a million clients: what it takes to build one, to sample from it and to train on it.

    python benchmarks/population.py [clients] [build] [sample] [round] [stand-ins]       all four without arguments

Each line is a figure: name, value, unit, and its ratio to the bound that it must keep (below 1 is kept), or to what it
is held against. Clients have 1 to 9 examples of 8 float32 features; ids are text. `clients` is their number, 10⁶ if it
is not given.

build: memory is the process's resident set above what it was after imports; "folder" is what `pack` writes, "sorted" is
a Parquet file in the order of the ids, "shuffled" is one in another order. In processes of their own.
sample: one draw of 1,000 by `Fixed.draw`; opening each of them.
round: 100 clients of a linear model by `hansa.train` in one process, with so many registered, against 10³ registered.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import hansa
from hansa.core.sampling import Stream
from hansa.data import Population, pack, twin

FEATURES = 8


def figure(name: str, value: float, unit: str, ratio: float | None = None) -> None:
    print(f"{name:52} {value:12.3f} {unit:8} {'' if ratio is None else format(ratio, '.3f')}", flush=True)


def resident_mb() -> float:
    """The resident set, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


def peak_mb() -> float:
    """The largest resident set so far, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def write(folder: Path, clients: int, shuffled: bool) -> Path:
    """A Parquet file of `clients` clients."""
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(clients), rng.integers(1, 10, clients))
    if shuffled:
        rng.shuffle(owner)
    ids = pa.array([f"user-{number:07x}" for number in range(clients)]).take(pa.array(owner))
    x = rng.random((len(owner), FEATURES), dtype=np.float32)
    y = rng.integers(0, 2, len(owner))
    columns = {"id": ids, "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), FEATURES), "y": pa.array(y)}
    path = folder / f"{'shuffled' if shuffled else 'sorted'}-{clients}.parquet"
    parquet.write_table(pa.table(columns), path, row_group_size=1 << 16)
    return path


def opened(path: str) -> Population:
    """The population at a path."""
    return Population(path, id=None if Path(path).is_dir() else "id")


def build_one(path: str) -> None:
    """In a process of its own: builds one, draws 1,000 and opens them."""
    import pyarrow.compute
    import pyarrow.ipc
    import pyarrow.parquet  # noqa: F401

    before = resident_mb()
    began = time.perf_counter()
    people = opened(path)
    seconds = time.perf_counter() - began
    built, most = resident_mb() - before, peak_mb() - before
    drawn = hansa.Fixed(1000).draw(people.ids, Stream("a"))
    began = time.perf_counter()
    for name in drawn[:100]:
        people.open(name)
    each = (time.perf_counter() - began) / 100
    kind = "folder" if Path(path).is_dir() else Path(path).stem.split("-")[0]
    figure(f"build, {kind}: time", seconds, "s", seconds / 2)
    figure(f"build, {kind}: memory held", built, "MB", built / 200)
    figure(f"build, {kind}: memory at the most", most, "MB", most / 200)
    figure(f"open one client, {kind}", 1e3 * each, "ms")
    if Path(path).is_dir():
        held = resident_mb() - before
        figure("memory after opening 100 more clients, folder", held, "MB", held / 200)


def build(folder: Path, clients: int) -> None:
    """Each in a fresh process."""
    for shuffled in (False, True):
        path = write(folder, clients, shuffled)
        subprocess.run([sys.executable, __file__, "--build-one", str(path)], check=True)
        if shuffled:
            began = time.perf_counter()
            pack(opened(str(path)), folder / f"people-{clients}")
            figure("pack, shuffled Parquet into a folder", time.perf_counter() - began, "s")
    subprocess.run([sys.executable, __file__, "--build-one", str(folder / f"people-{clients}")], check=True)


def sample(folder: Path, clients: int) -> None:
    """Draws from ids of every kind."""
    people = packed(folder, clients)
    stand_in = twin("stackoverflow", clients=clients, examples=10 * clients)
    for name, ids in {"text": people.ids, "numbered": stand_in.ids}.items():
        times = []
        for number in range(30):
            stream = Stream("sample", number)
            began = time.perf_counter()
            hansa.Fixed(1000).draw(ids, stream)
            times.append(time.perf_counter() - began)
        milliseconds = 1e3 * statistics.median(times)
        figure(f"sample 1,000 of {clients:,}, {name} ids", milliseconds, "ms", milliseconds / 5)
    drawn = hansa.Fixed(1000).draw(people.ids, Stream("b"))
    began = time.perf_counter()
    for name in drawn:
        people.open(name)
    figure("open 1,000 clients, folder", 1e3 * (time.perf_counter() - began), "ms")
    began = time.perf_counter()
    hansa.Poisson(1000 / clients).draw(people.ids, Stream("c"))
    figure(f"Poisson sample of {clients:,}, one coin for each", 1e3 * (time.perf_counter() - began), "ms")


def packed(folder: Path, clients: int) -> Population:
    """A folder of so many clients, written if it is not there."""
    path = folder / f"people-{clients}"
    return Population(str(path)) if path.exists() else pack(opened(str(write(folder, clients, False))), path)


def rounds(folder: Path, clients: int) -> None:
    """Rounds of 100 clients, the two populations taking turns."""
    job = hansa.Job(
        model=hansa.LogisticModel(FEATURES, classes=2), rounds=10, cohort=100,
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1, batch_size=4)), seed=1,
        pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
    )  # fmt: skip
    times: dict[int, list[float]] = {1000: [], clients: []}
    for _ in range(4):
        for count, taken in times.items():
            taken += [record.seconds for record in hansa.train(job, packed(folder, count)).rounds[1:]]
    few, many = (1e3 * statistics.median(taken) for taken in times.values())
    figure("round of 100, 1,000 registered", few, "ms")
    figure(f"round of 100, {clients:,} registered", many, "ms", many / few)


def stand_ins() -> None:
    """The stand-in with 342,477 clients."""
    before, began = resident_mb(), time.perf_counter()
    people = twin("stackoverflow")
    people.sizes()
    figure(f"stackoverflow, {len(people):,} clients: time", time.perf_counter() - began, "s")
    figure("stackoverflow: memory held", resident_mb() - before, "MB")
    for name in ("stackoverflow", "emnist"):
        clients, rows, began = twin(name), 0, time.perf_counter()
        for client in hansa.Fixed(50).draw(clients.ids, Stream("d")):
            rows += len(clients.open(client))
        figure(f"{name}: examples made a second", rows / (time.perf_counter() - began), "1/s")


def main(*wanted: str) -> None:
    clients = next((int(word) for word in wanted if word.isdigit()), 1_000_000)
    parts = [word for word in wanted if not word.isdigit()] or ["build", "sample", "round", "stand-ins"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "build" in parts:
            build(folder, clients)
        if "sample" in parts:
            sample(folder, clients)
        if "round" in parts:
            rounds(folder, clients)
    if "stand-ins" in parts:
        stand_ins()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build-one"]:
        build_one(sys.argv[2])
    else:
        main(*sys.argv[1:])
