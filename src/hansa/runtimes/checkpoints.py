"""Checkpoints every n rounds: what the rounds between leave behind is held in memory, and committed together.

A kill costs the rounds since the last checkpoint; they are trained again to the same bits. What clients remember is
held back as well, because a run that goes on from an earlier round asks for the memories of that round. A round that
was charged to the privacy ledger is committed at once: training it again would release, and cost, as much once more.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from hansa.core.checkpoint import Checkpoint
from hansa.core.errors import ConfigError, require
from hansa.core.ledger import Entry, Event
from hansa.core.runtime import Memories, Store
from hansa.core.tensors import EMPTY, Tensors


class Whole(Protocol):
    """A store that can commit several rounds at once."""

    def commit_rounds(self, checkpoint: Checkpoint, records: Sequence[Mapping[str, Any]], best: bool) -> None:
        """The state after the last of these rounds, and the records of all of them, or nothing."""


class EveryRounds(Store):
    """A store that commits every n-th round, and what is left when it is flushed.

    Args:
      store: where the state goes.
      memories: where clients' memories go; give the run `held` instead of them.
      every: rounds between checkpoints, ≥ 1; counted from the beginning of the run.

    Raises:
      ConfigError: `every` is out of its range, or the store commits one round at a time only.
    """

    def __init__(self, store: Store, memories: Memories, every: int) -> None:
        require(every >= 1, f"checkpoint_every={every}: at least 1 round.")
        if not callable(getattr(store, "commit_rounds", None)):
            raise ConfigError(
                f"checkpoint_every={every}: {type(store).__name__} commits one round at a time; leave it out, or give "
                "the store commit_rounds(checkpoint, records, best)."
            )
        self._whole = cast(Whole, store)
        self._store, self._every = store, every
        self._last, self._best = store.load(), store.best()
        self._better: Checkpoint | None = None  # the best of the rounds that are held
        self._records: list[Mapping[str, Any]] = []  # of the rounds that are held
        self._charged = False
        self.held = HeldMemories(memories, dict(self._last.memories) if self._last is not None else {})

    def secret(self) -> bytes:
        """The store's."""
        return self._store.secret()

    def load(self) -> Checkpoint | None:
        """The last checkpoint, held or committed."""
        return self._last

    def charge(self, round: int, attempt: int, survivors: Sequence[str], events: Sequence[Event]) -> None:
        """At once, and so is the round that follows."""
        self._store.charge(round, attempt, survivors, events)
        self._charged = True

    def charges(self) -> Sequence[Entry]:
        """The ledger."""
        return self._store.charges()

    def commit(self, checkpoint: Checkpoint, record: Mapping[str, Any], best: bool) -> None:
        """Holds the round, or commits all that are held."""
        self._last = checkpoint
        self._records.append(record)
        if best:
            self._best = self._better = checkpoint
        if self._charged or checkpoint.round % self._every == 0:
            self.flush()
        else:
            self.held.forget(kept.memories for kept in (checkpoint, self._better) if kept is not None)

    def flush(self) -> None:
        """Commits what is held; each step leaves a state from which the run can go on."""
        if not self._records or self._last is None:
            return
        if self._better is not None and self._better is not self._last:
            count = len(self._records) - (self._last.round - self._better.round)
            self._write(self._better, count, best=True)
        self._write(self._last, len(self._records), best=self._better is self._last)
        self._better, self._charged = None, False
        self.held.forget([])

    def records(self) -> Sequence[Mapping[str, Any]]:
        """Of all rounds, held or committed."""
        return [*self._store.records(), *self._records]

    def best(self) -> Checkpoint | None:
        """The best checkpoint, held or committed."""
        return self._best

    def _write(self, checkpoint: Checkpoint, count: int, best: bool) -> None:
        self.held.write(checkpoint.memories)  # beside the old ones, which go only when the next are written
        self._whole.commit_rounds(checkpoint, self._records[:count], best)
        self.held.committed = dict(checkpoint.memories)
        del self._records[:count]


class HeldMemories:
    """Clients' memories, in this process until the round that counts them is committed.

    Args:
      memories: where they go then.
      committed: of the last checkpoint: client to the name of its memory.
    """

    def __init__(self, memories: Memories, committed: Mapping[str, str]) -> None:
        self._memories = memories
        self.committed = dict(committed)
        self._held: dict[str, dict[str, Tensors]] = {}

    def load(self, client: str, since: str) -> Tensors:
        """The memory saved under `since`."""
        if not since:
            return EMPTY
        held = self._held.get(client, {})
        return held[since] if since in held else self._memories.load(client, since)

    def save(self, client: str, name: str, memory: Tensors) -> None:
        """Holds a memory."""
        held = self._held.setdefault(client, {})
        held.pop(name, None)  # so that the latest stands last
        held[name] = memory

    def forget(self, counted: Iterable[Mapping[str, str]]) -> None:
        """Lets go of what none of these states asks for, but for each client's latest: its task may count later."""
        states = list(counted)
        for client, held in list(self._held.items()):
            latest = next(reversed(held))
            wanted = {names[client] for names in states if client in names}
            wanted |= {latest} if self.committed.get(client) != latest else set()
            self._held[client] = {name: memory for name, memory in held.items() if name in wanted}
            if not self._held[client]:
                del self._held[client]

    def write(self, counted: Mapping[str, str]) -> None:
        """Makes durable what a state asks for."""
        for client, held in self._held.items():
            if (name := counted.get(client)) is not None and name in held:
                self._memories.load(client, self.committed.get(client, ""))  # so that it is kept beside the new one
                self._memories.save(client, name, held[name])
