"""The Ray runtime: actors on this machine or on a cluster, the same bits as the local runtime.

    driver   round loop ── PoolSession ──► idle actor: {"task"} as JSON, references to tensors in the object store
    actor    Performer: perform(...) ──► its message, in the object store of its node

A tensor is a safetensors file in an array of bytes: the model is put into the store once a round, travels to each node
once, and is mapped there by all its actors without a copy. Ray carries these bytes and JSON, never an object of the
user's, so models, losses and callables must be importable by name on every node; `pool` schedules.
"""

import json
import logging
import math
import multiprocessing.spawn
import os
import re
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa import __version__
from hansa.core.checkpoint import buffers, open_bytes
from hansa.core.data import Clients
from hansa.core.errors import ConfigError, HansaError, JobError, MissingExtra, require
from hansa.core.job import Job
from hansa.core.runtime import Memories, Runtime
from hansa.core.tensors import EMPTY, Tensors
from hansa.runtimes.allocator import keep_freed_memory
from hansa.runtimes.history import History
from hansa.runtimes.pool import COHORT, DEVICE, TRIES, Member, Performer, PoolSession, Report
from hansa.runtimes.simulation import simulate

try:
    import ray
except ModuleNotFoundError as error:
    raise MissingExtra("Ray", "ray", "ray") from error

from ray.exceptions import RayError

from hansa.runtimes.ray_cluster import connected, room

NOTICE_S = 30.0  # with no worker at all for so long, the log says what is waited for
log = logging.getLogger("hansa.ray")


@dataclass(frozen=True)
class Ray(Runtime):
    """Trains on the workers of a Ray cluster.

    Args:
      address: of a running cluster, as `10.0.0.7:6379`, or `auto` for the one that this machine belongs to; None starts
        a private one on this machine, reachable from it alone, and ends it with the run. Where this process has called
        `ray.init` already, that cluster is used and left running.
      workers: actors, each of which trains one client at a time, or a stack of them; None for as many as fit.
      cpus: of each worker, as Ray counts them; below 1, several share one.
      gpus: of each worker; 0.25 puts four on each GPU, and each sees its own as `cuda:0`.
      cohort: clients handed together to a model that trains many at once (`TorchModel(loop="cohort")`), as in
        `Processes`; others are trained one at a time. A GPU wants hundreds.
      store_bytes: of the private cluster's object store, which holds messages and clients' data in memory; what does
        not fit is written to disk.

    Guarantees:
      The bits of `Local` for the same job, whatever the number of workers and whichever of them die: a worker that is
      lost, with its node or without, is replaced and its task done again.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    store_bytes: int = 1 << 30
    cohort: int = COHORT

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, f"workers={self.workers}: at least one is needed.")
        for name, amount in (("cpus", self.cpus), ("gpus", self.gpus)):
            whole = amount == int(amount) or 0 < amount < 1
            require(amount >= 0 and whole, f"{name}={amount}: Ray wants a fraction below 1, or a whole number.")
        require(self.cohort >= 1, f"cohort={self.cohort}: at least one client is trained at a time.")
        require(self.cpus > 0, f"cpus={self.cpus}: a worker takes some.")
        least = 80 << 20
        require(self.store_bytes >= least, f"store_bytes={self.store_bytes}: Ray wants at least {least}.")

    def run(self, job: Job, clients: Clients, **options: Any) -> History:
        """Trains to the end, or from the store's last committed round; options as those of `simulate`.

        Raises:
          JobError: the job cannot be rebuilt on the workers.
          ConfigError: no node has room for a worker, or a worker lacks what the job needs.
          Unreachable: no cluster answers at the address.
        """
        if _SETTLING:
            raise ConfigError(
                "the job's own file, imported by a worker, begins to train: put that under if __name__ == '__main__'."
            )

        with connected(self.address, self._processors, self.store_bytes) as grows:
            count = self._count(grows)

            def opened(job: Job, clients: Clients, memories: Memories) -> "closing[RaySession]":
                return closing(RaySession(job, clients, memories, self, count))

            return simulate(opened, job, clients, **options)

    @property
    def _processors(self) -> int:
        """What a private cluster says it has: enough for the workers that were asked for."""
        return os.cpu_count() or 1 if self.workers is None else math.ceil(self.workers * self.cpus)

    def _count(self, grows: bool) -> int:
        """Workers, which may wait for room if the cluster can grow; ConfigError if there is none at all."""
        fits = room(self.cpus, self.gpus)
        if not fits and (self.workers is None or not grows):
            wanted, there = _amounts({"CPU": self.cpus, "GPU": self.gpus}), _amounts(ray.cluster_resources())
            raise ConfigError(f"no node has {wanted} for a worker, in all nodes there are {there}: lower cpus or gpus.")
        return self.workers or fits


class RaySession(PoolSession[Any]):
    """Hands each task to an idle actor; a handle is a reference to an object in Ray's store.

    Args:
      job, clients, memories: as those of every pool.
      how: what the actors are given. Ray is connected.
      count: actors.
    """

    def __init__(self, job: Job, clients: Clients, memories: Memories, how: Ray, count: int) -> None:
        super().__init__(job, clients, memories, count, how.cohort)
        self._setup.update(main=_main(self._setup), paths=sys.path, device=os.environ.get(DEVICE))
        self._actors = ray.remote(SimulationWorker).options(
            num_cpus=how.cpus, num_gpus=how.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._wanted = _amounts({"CPU": how.cpus, "GPU": how.gpus})
        self._at: dict[str, str] = {}  # client -> the node that has had its data
        self._stillborn = 0

    def _start(self) -> "_Actor":
        return _Actor(self._actors.remote(json.dumps(self._setup)))

    def _write(self, tensors: Tensors) -> Any:
        return ray.put(packed(tensors))

    def _near(self, member: Member[Any], client: str) -> bool:
        assert isinstance(member, _Actor)
        return self._at.get(client, member.node) == member.node

    def _hear(self) -> tuple[Member[Any], Report | str] | None:
        actors = {member.awaited: member for member in self._members if isinstance(member, _Actor) and member.awaited}
        done, _ = ray.wait(list(actors), timeout=NOTICE_S)
        if not done:
            if not any(actor.ready for actor in actors.values()):
                wants, free = self._wanted, _amounts(ray.available_resources())
                log.warning("waiting for a node that has room for a worker (%s); free in all of them: %s", wants, free)
            return None
        actor = actors[done[0]]
        try:
            said = ray.get(actor.awaited)
        except RayError as error:
            self._stillborn += not actor.ready
            if self._stillborn == TRIES:
                raise ConfigError(f"{TRIES} workers died before their first task, the last one: {error}") from None
            return actor, f"{type(error).__name__}, on {actor.host or 'a node that gave it room'}"
        actor.awaited = None
        if not actor.ready:
            self._stillborn = 0
            actor.settled(**said)
            return None
        if actor.request is not None:
            self._at[actor.request.task.client] = actor.node
        return actor, Report.of(said, unpacked)


class _Actor(Member[Any]):
    """A worker of the cluster, and what is awaited of it: that it is ready, or a report."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.ready, self.node, self.host = False, "", ""
        self._actor, self.awaited = actor, actor.settle.remote()

    def settled(self, node: str, host: str, version: str, error: str) -> None:
        """Takes note of where it is; ConfigError if it cannot do this job."""
        if version != __version__:
            raise ConfigError(f"node {host} has Hansa {version}, this one {__version__}: give all nodes the same.")
        if error:
            raise ConfigError(f"a worker on node {host} cannot do this job: {error}")
        self.ready, self.node, self.host = True, node, host

    def begin(self, asked: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        self.awaited = self._actor.perform.remote(json.dumps(asked), list(inputs), *inputs.values())

    def end(self) -> None:
        with suppress(RayError, ValueError):  # it, or the cluster, is gone already
            ray.kill(self._actor)


class SimulationWorker:
    """The actor: one worker's half of a simulation, in a process of its own on some node.

    Args:
      setup: JSON of the job's and the population's canonical forms, and of what importing them needs.
    """

    def __init__(self, setup: str) -> None:
        keep_freed_memory()
        self._setup = json.loads(setup)
        self._performer = Performer(self._setup["job"], self._setup["clients"])

    def settle(self) -> dict[str, str]:
        """Makes the driver's modules importable, and says where this worker is and whether it can work."""
        sys.path += [path for path in self._setup["paths"] if path not in sys.path and os.path.isdir(path)]
        if self._setup["device"]:
            os.environ.setdefault(DEVICE, self._setup["device"])
        facts = {"node": ray.get_runtime_context().get_node_id(), "host": ray.util.get_node_ip_address()}
        return {**facts, "version": __version__, "error": _imported(self._setup["main"])}

    def perform(self, asked: str, names: list[str], *arrays: np.ndarray) -> dict[str, Any]:
        """Does one leg of a task: JSON and safetensors in, the fields of a `Report` with the same out."""
        given = dict(zip(names, arrays, strict=True))
        return self._performer.step(
            json.loads(asked), read=lambda name: unpacked(given[name]) if name in given else EMPTY, write=packed
        )


def packed(tensors: Tensors) -> np.ndarray:
    """A safetensors file as an array of bytes, which Ray moves without pickling what is inside."""
    return np.frombuffer(b"".join(buffers(tensors)), np.uint8)


def unpacked(array: np.ndarray) -> Tensors:
    """The tensors of such an array: read-only views of it."""
    return open_bytes(array.data)[0]


def _amounts(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


# -- a job that is defined in the script itself

_SETTLING: list[str] = []  # the script that this process imports because a job names what is in it


def _main(setup: Mapping[str, Any]) -> dict[str, str]:
    """What a worker imports as `__main__`: the driver's script, as spawned processes do, if the job names it.

    Raises:
      JobError: the names are typed at a prompt or in a notebook, where nothing can be imported.
    """
    names = sorted(set(re.findall(r'"(__main__:[^"]+)"', json.dumps([setup["job"], setup["clients"]]))))
    if not names:
        return {}
    given: Mapping[str, Any] = multiprocessing.spawn.get_preparation_data("hansa")
    found = {key: str(given[key]) for key in ("init_main_from_name", "init_main_from_path") if key in given}
    if not found or not os.path.isfile(found.get("init_main_from_path", __file__)):
        raise JobError([f"'{name}' lives in this prompt alone: put it into a file and import it." for name in names])
    return found


def _imported(main: Mapping[str, str]) -> str:
    """Imports the driver's script under another name than `__main__`; the error, if there is one."""
    _SETTLING.extend(main.values())
    try:
        multiprocessing.spawn.prepare(dict(main))
    except HansaError as error:
        return str(error)
    except Exception as error:
        remedy = "define what the job names in a module that is installed on all nodes"
        return f"{_SETTLING[0]} cannot be imported there ({type(error).__name__}: {error}): {remedy}."
    finally:
        _SETTLING.clear()
    return ""
