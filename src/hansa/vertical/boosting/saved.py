"""A party's part of the trees, kept after each round: written whole or not at all."""

import json
from dataclasses import dataclass
from pathlib import Path

from hansa.algorithms.trees.tree import Boosted
from hansa.core.errors import CorruptFile, StateMismatch
from hansa.crypto.private_file import write_atomically


@dataclass(frozen=True)
class Saved:
    """One training's state at one party.

    Args:
      folder: where; None keeps nothing.
      party: whose.
      training: bytes that differ where settings, alignment or data do.
    """

    folder: Path | None
    party: str
    training: bytes

    def load(self) -> tuple[str, Boosted] | None:
        """The training's id and the part after its last round, or None before the first.

        Raises:
          StateMismatch: it was left by another training.
          CorruptFile: it is no state.
        """
        if self.folder is None or not self._file.exists():
            return None
        try:
            head, _, body = self._file.read_text(encoding="utf-8").partition("\n")
            facts = json.loads(head)
            run, training = str(facts["run"]), facts["training"]
        except (ValueError, KeyError, TypeError):
            raise CorruptFile(f"{self._file} is no state of boosting: delete it to begin anew.") from None
        if training != self.training.hex():
            raise StateMismatch(
                f"{self._file} is of other settings, another alignment or other data: restore those, or delete it."
            )
        return run, Boosted.from_json(body)

    def store(self, run: str, part: Boosted) -> None:
        """Replaces the state."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            head = json.dumps({"run": run, "training": self.training.hex()})
            write_atomically(self._file, f"{head}\n{part.to_json()}".encode(), mode=0o600)

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / f"boosting-{self.party}.json"
