"""What the round loop asks of the world: `Task` and what comes back, `Session`, `Store`, `Memories`, `Mesh`.

A runtime carries and never interprets. Clocks, sockets, files and processes live behind these contracts; the loop only
sees what happened, one `Happening` at a time, and blocks nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hansa.core.checkpoint import Buffer, Checkpoint
from hansa.core.job import Job
from hansa.core.ledger import Entry, Event
from hansa.core.pipeline import Seat
from hansa.core.tensors import EMPTY, Tensors


@dataclass(frozen=True, kw_only=True)
class Task:
    """One request to one client.

    Args:
      run: random id of the run; a job can be run twice, and all state is keyed by it.
      fingerprint: of the job; a worker refuses a foreign one, and so does a server.
      kind: `train`, `evaluate` or `query`.
      version: rounds committed when the model was sent.
      round, attempt: what the reply counts for.
      client: who is asked.
      position: place in the order in which contributions are added.
      since: `round.attempt` of this client's last counted task, whose memory it starts from; empty at first.
      frozen: hash of the frozen tensors, sent once; empty if there are none.
      population: clients that could have been asked.
      role: `worker`, or `helper` for a party of the reducer's that has no data.
    """

    run: str
    fingerprint: str
    kind: str
    version: int
    round: int
    attempt: int
    client: str
    position: int
    since: str = ""
    frozen: str = ""
    population: int = 1
    role: str = "worker"

    @property
    def context(self) -> bytes:
        """What no other conversation of this or another run shares."""
        return f"{self.run}/{self.kind}/{self.round}.{self.attempt}".encode()

    @property
    def key(self) -> str:
        """Unique within a run: one reply a leg counts for it."""
        return f"{self.kind}/{self.round}.{self.attempt}/{self.client}"

    @property
    def memory(self) -> str:
        """The name under which the worker keeps the memory of this task."""
        return f"{self.round}.{self.attempt}"


# -- what can happen


@dataclass(frozen=True)
class Reply:
    """A whole message of one leg is here. `size_bytes` as it travelled; `seconds` the client worked."""

    task: Task
    leg: int
    message: Tensors
    size_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A client will not answer. `gone` if it may come back (its lease ran out); else its work raised, and would again.

    `error` is the exception where it happened in this process.
    """

    task: Task
    reason: str
    gone: bool = False
    error: BaseException | None = None


@dataclass(frozen=True)
class Deadline:
    """The time set for the tasks of one kind, round and attempt is over."""

    kind: str
    round: int
    attempt: int


@dataclass(frozen=True)
class Stop:
    """The operator wants the run to end after its last committed round."""

    reason: str = "stopped"


Happening = Reply | Failure | Deadline | Stop


@dataclass(frozen=True)
class Traffic:
    """Bytes on the wire and seconds, since the session was asked last."""

    up_bytes: int = 0
    down_bytes: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0


class Session(ABC):
    """One run on one runtime, as the round loop sees it."""

    @abstractmethod
    def population(self) -> Sequence[str]:
        """The sorted ids that can be asked in the next round; blocks, and says why, while there are too few."""

    @abstractmethod
    def publish(
        self, tasks: Sequence[Task], down: Tensors, frozen: Tensors = EMPTY, deadline_s: float | None = None
    ) -> None:
        """Offers tasks to their clients.

        Args:
          tasks: of one round and attempt, in task order.
          down: the message for all of them; never changed by the caller until `retire`.
          frozen: tensors of hash `task.frozen`; a runtime sends them to each client once.
          deadline_s: after so many seconds, of each leg, a `Deadline` happens, unless the tasks are retired; None for
            never.
        """

    @abstractmethod
    def next(self) -> Happening:
        """The next thing that happens; blocks until then."""

    @abstractmethod
    def send(self, task: Task, leg: int, message: Tensors) -> None:
        """The server's answer to a client that survived leg `leg - 1`."""

    @abstractmethod
    def retire(self, tasks: Sequence[Task]) -> None:
        """These tasks are over, counted or not: their uploads are deleted, what comes later is only counted as late."""

    def seat(self, task: Task) -> Seat:
        """The server's seat in the conversation that this task belongs to."""
        return Seat("server", task.context)

    @abstractmethod
    def traffic(self) -> Traffic:
        """What was carried since the last call."""


class Store(ABC):
    """Where a run's state is durable. Every method returns after the data would survive a crash."""

    @abstractmethod
    def secret(self) -> bytes:
        """32 bytes from the operating system, drawn when the run was made: the root of its protective noise."""

    @abstractmethod
    def load(self) -> Checkpoint | None:
        """The last committed checkpoint, or None before the first."""

    @abstractmethod
    def charge(self, round: int, attempt: int, survivors: Sequence[str], events: Sequence[Event]) -> None:
        """Records, before a secret total is opened, for whom it will be and what it releases."""

    @abstractmethod
    def charges(self) -> Sequence[Entry]:
        """Everything ever charged to this run, in order, opened or not."""

    @abstractmethod
    def commit(self, checkpoint: Checkpoint, record: Mapping[str, Any], best: bool) -> None:
        """The next state, the round's record, and whether its model is the best so far (which is kept)."""

    @abstractmethod
    def records(self) -> Sequence[Mapping[str, Any]]:
        """The records of all committed rounds."""

    @abstractmethod
    def best(self) -> Checkpoint | None:
        """The checkpoint that was committed as the best, or None."""


class Memories(Protocol):
    """Where a worker keeps what it remembers between tasks; nothing of it ever leaves it.

    Loading forgets nothing: an evaluation may name a memory whose round is not committed yet, and would be undone by a
    crash. Saving may forget all but the new memory and the one that was loaded last, from which its task began.
    """

    def load(self, client: str, since: str) -> Tensors:
        """The memory saved under `since`; empty if `since` is."""

    def save(self, client: str, name: str, memory: Tensors) -> None:
        """Keeps a memory that becomes current only if its task is counted; it may be empty."""


class Runtime(ABC):
    """A way to run a job: opens a session, and gives the store its state goes to."""

    @abstractmethod
    def run(self, job: Job, clients: Any, **options: Any) -> Any:
        """Trains and returns a History."""


@dataclass
class Counters:
    """What a mesh has carried, in bytes and messages, by peer."""

    sent_bytes: dict[str, int] = field(default_factory=dict)
    received_bytes: dict[str, int] = field(default_factory=dict)
    rounds: int = 0


class Mesh(ABC):
    """Party-to-party links for symmetric protocols (MPC, PSI, vertical learning, gossip); blocking."""

    me: str
    peers: tuple[str, ...]
    counters: Counters

    @abstractmethod
    def send(self, to: str, tag: str, buffers: Sequence[Buffer]) -> None:
        """Sends buffers under a tag; returns when they may be reused."""

    @abstractmethod
    def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> list[Buffer]:
        """The buffers that `sender` sent under `tag`; Unreachable after the deadline, ProtocolError for another tag."""

    def exchange(self, tag: str, content: bytes) -> dict[str, bytes]:
        """What every party says under `tag`, by name, this one's `content` among it; all parties call it together."""
        for peer in self.peers:
            self.send(peer, tag, [content])
        return {self.me: content, **{peer: b"".join(self.recv(peer, tag)) for peer in self.peers}}
