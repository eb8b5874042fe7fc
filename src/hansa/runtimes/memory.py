"""State that lives as long as this process: the store and the worker memories of a simulation that is not resumed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hansa.core.checkpoint import Checkpoint
from hansa.core.errors import CorruptFile
from hansa.core.ledger import Entry, Event, Ledger
from hansa.core.runtime import Store
from hansa.core.tensors import EMPTY, Tensors


class MemoryStore(Store):
    """A run's state in this process alone; durable no longer than it."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)
        self._ledger = Ledger()
        self._checkpoint: Checkpoint | None = None
        self._best: Checkpoint | None = None
        self._records: list[Mapping[str, Any]] = []

    def secret(self) -> bytes:
        """32 bytes of the operating system, drawn when this store was made."""
        return self._secret

    def load(self) -> Checkpoint | None:
        """The last checkpoint."""
        return self._checkpoint

    def charge(self, round: int, attempt: int, survivors: Sequence[str], events: Sequence[Event]) -> None:
        """Appends to the ledger."""
        self._ledger = self._ledger.add(round, attempt, events)

    def charges(self) -> Sequence[Entry]:
        """The ledger's entries."""
        return self._ledger.entries

    def commit(self, checkpoint: Checkpoint, record: Mapping[str, Any], best: bool) -> None:
        """Replaces the checkpoint."""
        self.commit_rounds(checkpoint, [record], best)

    def commit_rounds(self, checkpoint: Checkpoint, records: Sequence[Mapping[str, Any]], best: bool) -> None:
        """The state after the last of these rounds, with the records of all of them."""
        self._checkpoint = checkpoint
        self._best = checkpoint if best else self._best
        self._records.extend(records)

    def records(self) -> Sequence[Mapping[str, Any]]:
        """All records."""
        return self._records

    def best(self) -> Checkpoint | None:
        """The best checkpoint."""
        return self._best


class MemoryMemories:
    """Worker memories in this process: of each client the one its last task began from, and the one it left."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Tensors]] = {}
        self._loaded: dict[str, str] = {}

    def load(self, client: str, since: str) -> Tensors:
        """The memory saved under `since`."""
        self._loaded[client] = since
        if not since:
            return EMPTY
        kept = self._kept.get(client, {})
        if since not in kept:
            raise CorruptFile(f"'{client}' has no memory of round {since}, which the server counted: it was lost.")
        return kept[since]

    def save(self, client: str, name: str, memory: Tensors) -> None:
        """Keeps a memory beside the one that its task began from; others are forgotten."""
        since = self._loaded.get(client, "")
        kept = {key: tensors for key, tensors in self._kept.get(client, {}).items() if key == since}
        self._kept[client] = {**kept, name: memory}
