"""Many independent products, on all cores: pieces in order, computed ahead while others are on their way."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeAlias

from hansa.core.errors import ConfigError

Mapper: TypeAlias = Callable[[Callable[..., bytes], Iterable[tuple[Any, ...]]], Iterator[bytes]]
"""Like `itertools.starmap`: applies a function of a module to arguments, in order."""

ALONE = 1 << 14  # fewer products than a pool takes to start


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def mapper(workers: int | None, products: int) -> Iterator[Mapper]:
    """A way to apply functions on `workers` processes (None: one for each core), or in this one if that is quicker."""
    count = cores() if workers is None else workers
    if count <= 1 or products < ALONE:
        yield _here
        return
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield lambda function, arguments: _ahead(pool, 2 * count, function, arguments)
    except BrokenProcessPool:
        raise ConfigError(
            "a worker process of the intersection ended: put what starts it under if __name__ == '__main__', "
            "or give workers=1."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _here(function: Callable[..., bytes], arguments: Iterable[tuple[Any, ...]]) -> Iterator[bytes]:
    for each in arguments:
        yield function(*each)


def _ahead(
    pool: ProcessPoolExecutor, depth: int, function: Callable[..., bytes], arguments: Iterable[tuple[Any, ...]]
) -> Iterator[bytes]:
    waiting: deque[Future[bytes]] = deque()
    for each in arguments:
        waiting.append(pool.submit(function, *each))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def counter(report: Callable[[int, int], None] | None, done: int, total: int) -> Callable[[int], None] | None:
    """Turns pieces of work, as they are done, into what `report` is told: how much is done, and of how much."""
    if report is None:
        return None

    def told(more: int) -> None:
        nonlocal done
        done += more
        report(done, total)

    return told
