"""`Virtual`: any job, in the simulated time of a fleet, with the real training done by another runtime.

    history = hansa.train(job, clients, runtime=hansa.Virtual(hansa.Fleet.tiers(len(clients), seed=1)))
    history.seconds, history.tally, seconds_to(history, "accuracy", 0.9)

Deadlines, over-selection, quorum and staleness are those of the job's sampling, in simulated seconds: the round loop is
the same as in every runtime, only the order of what happens to it is the fleet's.

Over-selection, drop-outs and devices that are there at night are as in Bonawitz et al.: Towards Federated Learning at
Scale: System Design, 2019, https://arxiv.org/abs/1902.01046
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from hansa.core.data import Clients
from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.runtime import Memories, Runtime, Session, Store
from hansa.runtimes.history import History
from hansa.runtimes.local import Local, LocalSession
from hansa.runtimes.processes import Processes, ProcessSession
from hansa.runtimes.simulation import simulate
from hansa.runtimes.virtual.fleet import Fleet
from hansa.runtimes.virtual.session import Tally, VirtualSession
from hansa.runtimes.virtual.workload import Workload
from hansa.runtimes.virtual.world import World


class VirtualHistory(History):
    """A history whose seconds are simulated; `tally` says how tasks ended (of this call, if the run was resumed)."""

    tally: Tally

    @staticmethod
    def of(history: History, tally: Tally) -> "VirtualHistory":
        """A history with the tally of its session."""
        virtual = VirtualHistory.__new__(VirtualHistory)
        virtual.__dict__.update(history.__dict__)
        virtual.tally = tally
        return virtual

    @property
    def seconds(self) -> float:
        """Simulated seconds of all committed rounds."""
        return sum(record.seconds for record in self.rounds)


@dataclass(frozen=True)
class Virtual(Runtime):
    """Trains in the simulated time of a fleet.

    Args:
      fleet: the devices of the clients.
      inner: does the real work: `Local()` or `Processes()`.
      seed: of drop-outs and jitter; the job's seed decides all else.
      notice_s: seconds until the server notices that a device left; 0 as with a broken connection.
      needs_gb: memory that the job needs; devices with less are not in the population.
      ask_available: ask only devices that are there when a round begins. False asks any enrolled one, and waits for it.

    Guarantees:
      The same job, fleet and seed give the same bits and the same times, whatever `inner` is. With devices that are all
      alike and never leave, the bits are those of `Local`.

    Raises:
      ConfigError: a value out of its range, or fewer devices than clients.
    """

    fleet: Fleet
    inner: Runtime = field(default_factory=Local)
    seed: int = field(default=0, kw_only=True)
    notice_s: float = field(default=0.0, kw_only=True)
    needs_gb: float = field(default=0.0, kw_only=True)
    ask_available: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.fleet, Fleet):
            raise ConfigError(f"fleet={self.fleet!r}: give a Fleet, as in Virtual(Fleet.tiers(100)).")
        if not isinstance(self.inner, Local | Processes):
            raise ConfigError(f"inner={self.inner!r}: the work is done by Local() or Processes().")
        for name in ("notice_s", "needs_gb"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)}: it is finite and at least 0.")

    def run(self, job: Job, clients: Clients, **options: Any) -> VirtualHistory:
        """Trains to the end, or from the store's last committed round; options as those of `simulate`.

        A resumed run begins at the simulated time of its last record, with idle devices.
        """
        store: Store | None = options.get("store")
        begun = sum(record["seconds"] for record in store.records()) if store is not None else 0.0
        sessions: list[VirtualSession] = []

        @contextmanager
        def opened(job: Job, clients: Clients, memories: Memories) -> Iterator[Session]:
            with working(self.inner, job, clients, memories) as inside:
                work, world = Workload(job, clients, len(clients)), World(self.fleet, begun)
                session = VirtualSession(
                    job, clients.ids, inside, work, world, seed=self.seed,
                    notice_s=self.notice_s, needs_gb=self.needs_gb, ask_available=self.ask_available,
                )  # fmt: skip
                sessions.append(session)
                yield session

        return VirtualHistory.of(simulate(opened, job, clients, **options), sessions[0].tally)


@contextmanager
def working(inner: Runtime, job: Job, clients: Clients, memories: Memories) -> Iterator[Session]:
    """The session of the runtime that really works."""
    if isinstance(inner, Processes):
        with closing(ProcessSession(job, clients, memories, inner.workers, devices=inner.devices)) as session:
            yield session
    else:
        yield LocalSession(job, clients, memories)
