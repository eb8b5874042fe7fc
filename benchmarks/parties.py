"""Parties for benchmarks: one process each, on loopback, over mutual TLS 1.3."""

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hansa.app.enrol import Authority
from hansa.runtimes.mesh import Parties, TlsMesh


def play(names: Sequence[str], act: Callable[..., Any], *given: Any, timeout_s: float = 900) -> list[Any]:
    """Calls `act(mesh, *given)` in a process for each party, connected, and gives what each returned.

    Args:
      names: of the parties.
      act: a function of a module, called with this party's mesh.
      given: for all of them; picklable.
      timeout_s: for the slowest.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create(Path(folder) / "authority", "benchmark")
        for name in names:
            authority.issue(name, "party", hosts=["127.0.0.1"]).rename(Path(folder) / f"{name}.pem")
        parties = Parties.here(names)
        pipes = [context.Pipe() for _ in names]
        children = [
            context.Process(target=_party, args=(folder, parties, name, act, given, pipe[1]), daemon=True)
            for name, pipe in zip(names, pipes, strict=True)
        ]
        for child in children:
            child.start()
        try:
            results = [pipe.recv() if pipe.poll(timeout_s) else TimeoutError(timeout_s) for pipe, _ in pipes]
        finally:
            for child in children:
                child.kill()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _party(folder: str, parties: Parties, name: str, act: Callable[..., Any], given: Sequence[Any], pipe: Any) -> None:
    try:
        with TlsMesh(Path(folder) / f"{name}.pem", parties, wait_s=120) as mesh:
            result = act(mesh, *given)
    except Exception as error:
        result = error
    pipe.send(result)
    pipe.close()
