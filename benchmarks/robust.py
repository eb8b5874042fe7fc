"""Robust reducers: what they cost over a plain sum, and over the same formulas as they are usually written.

    OMP_NUM_THREADS=1 python benchmarks/robust.py [clients] [coordinates]

Each line is a figure: name, value, unit, and its ratios to `Sum` and to the textbook (all contributions stacked in one
array; distances pair by pair with `np.linalg.norm`, as the federated frameworks have them). All take turns; medians.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

import hansa
from hansa.core.pipeline import Arrived, Closed, Reducer
from hansa.core.tensors import Tensors
from hansa.stages.krum import krum_scores

REPEATS = 3
Textbook = Callable[[np.ndarray], np.ndarray]


def reduced(reducer: Reducer, messages: list[Tensors]) -> np.ndarray:
    server = reducer.server([], None)  # type: ignore[arg-type]
    next(server)
    for i, message in enumerate(messages):
        server.send(Arrived(str(i), 0, message))
    try:
        server.send(Closed(0, ()))
    except StopIteration as end:
        return np.asarray(end.value["value/w"]) / len(messages)
    raise AssertionError("a reducer of one leg ends")


def pairwise(rows: np.ndarray) -> np.ndarray:
    return np.array([[np.linalg.norm(a - b) ** 2 for b in rows] for a in rows])


def krum(f: int, m: int) -> Textbook:
    return lambda rows: rows[np.argsort(krum_scores(pairwise(rows), f), kind="stable")[:m]].mean(axis=0)


def trimmed(cut: int) -> Textbook:
    return lambda rows: np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)


def weiszfeld(rows: np.ndarray) -> np.ndarray:
    v = np.median(rows, axis=0)
    for _ in range(10):
        pulls = 1 / np.linalg.norm(rows - v, axis=1)
        v = pulls @ rows / pulls.sum()
    return v


def main(clients: int = 32, coordinates: int = 1 << 20) -> None:
    rows = np.random.default_rng(0).standard_normal((clients, coordinates)).astype(np.float32)
    messages, f = [Tensors({"value/w": row}) for row in rows], (clients - 3) // 4
    cases: dict[str, tuple[Reducer, Textbook | None]] = {
        "Sum": (hansa.Sum(), lambda rows: rows.mean(axis=0)),
        "Median": (hansa.Median(), lambda rows: np.median(rows, axis=0)),
        "TrimmedMean": (hansa.TrimmedMean(0.2), trimmed(hansa.TrimmedMean(0.2).withstands(clients))),
        "Krum": (hansa.Krum(f), krum(f, 1)),
        "MultiKrum": (hansa.MultiKrum(f), krum(f, clients - f - 2)),
        "Bulyan": (hansa.Bulyan(f), None),
        "GeometricMedian": (hansa.GeometricMedian(), weiszfeld),
    }
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(REPEATS):
        for name, (reducer, textbook) in cases.items():
            began = time.perf_counter()
            ours = reduced(reducer, messages)
            times.setdefault((name, True), []).append(time.perf_counter() - began)
            if textbook is not None:
                began = time.perf_counter()
                theirs = textbook(rows)
                times.setdefault((name, False), []).append(time.perf_counter() - began)
                np.testing.assert_allclose(ours, theirs, atol=1e-4)
    plain = statistics.median(times["Sum", True])
    for name in cases:
        took = statistics.median(times[name, True])
        peer = statistics.median(times[name, False]) if (name, False) in times else None
        against = f"{took / plain:.1f} × Sum" + (f", {took / peer:.2f} × the textbook" if peer else "")
        print(
            f"{name + f', {clients} clients, {coordinates} numbers':44} {took * 1e3:10.1f} ms       ({against})",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
