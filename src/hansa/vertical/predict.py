"""Prediction together, as a service of each owner: a request names people, the answers reach one owner alone.

    asker   ids ──────────► every other owner: which of them do I know?
            those all know ◄─┘
            all: predict on these people's rows, as the algorithm does it        ──► answers, at the asker alone

Who serves learns which people are asked about, and nothing of the answers. A person whom an owner does not know, or a
request during which an owner is lost, is answered by a declared default that says so: an answer is never made up from
fewer columns than it claims.
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, HansaError, ProtocolError, Refused, Unreachable, require
from hansa.core.runtime import Mesh
from hansa.runtimes.mesh import TlsMesh
from hansa.runtimes.mesh.messages import heard
from hansa.vertical.learns import Learns
from hansa.vertical.table import AlignedTable

_log = logging.getLogger("hansa.vertical.predict")

Predict: TypeAlias = Callable[[AlignedTable | None], Any]
"""One owner's side of a joint prediction, which all owners call with the same people: outputs at the asker, None at the
others: `part.predict` of split learning, `lambda table: model.predict(session, table)` of a linear model,
`lambda table: predict(mesh, trees, table)` of boosted trees."""
Connect: TypeAlias = Callable[[], tuple[Mesh, Predict]]
"""Links to the other owners, which the asker closes, and its side over them; called again after an owner was lost."""


@dataclass(frozen=True)
class Answer:
    """What was found of one person.

    Args:
      id: as it was asked.
      value: the prediction, or the declared default.
      reason: why it is the default; empty if it is a prediction of all owners.
    """

    id: str = field(repr=False)
    value: Any
    reason: str = ""

    @property
    def joint(self) -> bool:
        """Whether all owners' columns are in it."""
        return not self.reason


def learns(asker: str, owners: Sequence[str]) -> Learns:
    """What each party learns from the service, beside what the algorithm's own prediction tells."""
    others = {name: ["which people are asked about, and when"] for name in owners if name != asker}
    return {asker: ["for each person: the prediction, or which owner does not know them"], **others}


@dataclass(frozen=True, kw_only=True)
class People:
    """One owner's people, by the ids that requests name.

    Args:
      ids: one for each row, each once.
      table: their columns; None at a party that only computes, which knows everybody.
    """

    ids: Sequence[str] = field(default=(), repr=False)
    table: AlignedTable | None = field(default=None, repr=False)
    _rows: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = 0 if self.table is None else len(self.table)
        require(len(self.ids) == count, f"{len(self.ids)} ids for {count} rows: give one for each.")
        rows = {name: at for at, name in enumerate(self.ids)}
        if len(rows) < len(self.ids):
            raise DataError(f"{len(self.ids) - len(rows)} ids occur more than once: keep one row for each person.")
        object.__setattr__(self, "_rows", rows)

    def knows(self, ids: Sequence[str]) -> list[bool]:
        """Whether each of them is here."""
        return [self.table is None or name in self._rows for name in ids]

    def of(self, ids: Sequence[str], alignment: bytes) -> AlignedTable | None:
        """Their rows, in this order, as an alignment of their own."""
        if self.table is None:
            return None
        index = np.array([self._rows[name] for name in ids], np.int64)
        columns = {name: self.table[name][index] for name in self.table.names}
        return AlignedTable(self.table.owner, columns, alignment)


class Asker:
    """The owner who may see the answers.

    Args:
      connect: see `Connect`; tried at the first request, and again at each one after a loss.
      people: this owner's.
      default: the value that is answered where there is no joint prediction.
      deadline_s: how long to wait for an owner to say whom it knows.
    """

    def __init__(self, connect: Connect, people: People, *, default: Any, deadline_s: float = 60.0) -> None:
        self._connect, self._people, self._default, self._deadline_s = connect, people, default, deadline_s
        self._links: tuple[Mesh, Predict] | None = None

    def ask(self, ids: Sequence[str]) -> list[Answer]:
        """One answer for each id, in order.

        Raises:
          Refused: an owner does not serve so many at once.
          HansaError: this owner's own side failed; the next request connects again.
          ConfigError: ids occur twice.
        """
        require(len(set(ids)) == len(ids), "ids occur more than once in a request: name each person once.")
        if not ids:
            return []
        try:
            if self._links is None:
                self._links = self._connect()
            return self._together(*self._links, list(ids))
        except Unreachable as error:
            self._leave()
            _log.warning("%d people answered by the default: %s", len(ids), error)
            return [Answer(name, self._default, f"an owner is lost: {error}") for name in ids]
        except Refused:
            raise
        except HansaError as error:  # the others are in the middle of this request
            self._leave(error)
            raise

    def close(self) -> None:
        """Tells the other owners that nothing more will be asked."""
        if self._links is not None:
            _tell(self._links[0], "request", None)
            self._leave()

    def _leave(self, error: HansaError | None = None) -> None:
        if self._links is not None and isinstance(self._links[0], TlsMesh):
            self._links[0].__exit__(None if error is None else type(error), error, None)
        self._links = None

    def _together(self, mesh: Mesh, predict: Predict, ids: list[str]) -> list[Answer]:
        salt = secrets.token_hex(16)
        _tell(mesh, "request", [ids, salt])
        refusal, unknown = self._unknown(mesh, ids)
        asked = [] if refusal else [name for name in ids if name not in unknown]
        _tell(mesh, "people", asked)
        if refusal:
            raise Refused(refusal)
        outputs = _values(predict(self._people.of(asked, _alignment(salt, asked))), len(asked)) if asked else ()
        known = {name: Answer(name, value) for name, value in zip(asked, outputs, strict=True)}
        reasons = {name: f"'{owner}' does not know this person" for name, owner in unknown.items()}
        return [known[name] if name in known else Answer(name, self._default, reasons[name]) for name in ids]

    def _unknown(self, mesh: Mesh, ids: list[str]) -> tuple[str, dict[str, str]]:
        """Why an owner refuses, if one does; and those whom some owner does not know, with its name."""
        refusal = ""
        unknown = {name: mesh.me for name, known in zip(ids, self._people.knows(ids), strict=True) if not known}
        for peer in mesh.peers:
            refused, known = heard(mesh, peer, "known", tuple[str, list[bool]], self._deadline_s)
            refusal = refusal or refused
            if not refusal and len(known) != len(ids):
                raise ProtocolError(f"'{peer}' did not say of each of {len(ids)} people whether it knows them.")
            unknown |= {name: peer for name, here in zip(ids, known, strict=False) if not here}
        return refusal, unknown


def serve(mesh: Mesh, predict: Predict, people: People, asker: str, *, most: int = 10_000) -> int:
    """Answers one owner's requests until it says that there are no more; every other owner runs this.

    Args:
      mesh: links to all owners.
      predict: this owner's side.
      people: this owner's.
      asker: who may ask, and alone learns answers.
      most: people of one request.

    Returns:
      How many people were predicted.

    Raises:
      Unreachable: the asker or another owner is lost: connect again, and serve again.
      ProtocolError: the asker names people whom it was told are not here.
    """
    if asker not in mesh.peers:
        raise ConfigError(f"asker='{asker}' is no other party of this mesh: {', '.join(mesh.peers)}.")
    count = 0
    while request := heard(mesh, asker, "request", tuple[list[str], str] | None):
        ids, salt = request
        refused = f"'{mesh.me}' serves {most} people at once, not {len(ids)}." if len(ids) > most else ""
        answer = [refused, [] if refused else people.knows(ids)]
        mesh.send(asker, "known", [json.dumps(answer).encode()])
        asked = heard(mesh, asker, "people", list[str])
        if not set(asked) <= set(ids) or not all(people.knows(asked)):
            raise ProtocolError(f"'{asker}' names people whom '{mesh.me}' does not know, or who were not asked about.")
        _log.info("%d people predicted for '%s', %d asked about", len(asked), asker, len(ids))
        if asked:
            predict(people.of(asked, _alignment(salt, asked)))
            count += len(asked)
    return count


def _tell(mesh: Mesh, tag: str, value: Any) -> None:
    """Tells all other owners."""
    for peer in mesh.peers:
        mesh.send(peer, tag, [json.dumps(value).encode()])


def _alignment(salt: str, ids: Sequence[str]) -> bytes:
    """Of one request's rows: equal at all who took the same people in the same order."""
    return hashlib.sha256(json.dumps([salt, list(ids)]).encode()).digest()


def _values(outputs: Any, count: int) -> NDArray[Any]:
    values = np.asarray(outputs)
    if outputs is None or len(values) != count:
        raise ConfigError("the prediction gave the asker no output for each person: name it as the receiver.")
    return values
