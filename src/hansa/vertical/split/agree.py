"""Parties compare what must be the same before any data moves, and name what is not."""

import json
from typing import Any

from hansa.core.errors import ConfigError, DataError, ProtocolError
from hansa.core.runtime import Mesh
from hansa.vertical.split.plan import SplitLearning


def agree(mesh: Mesh, plan: SplitLearning, facts: dict[str, Any], rows: int | None) -> int:
    """Compares the plan and these facts with all other parties of the plan.

    Args:
      mesh: links to them, and perhaps to others.
      plan: this party's.
      facts: plain values; one that a party does not state is not compared with it.
      rows: of this party's data; None if it has none.

    Returns:
      The number of rows that all who have data have.

    Raises:
      ConfigError: something differs; says what, and with whom.
      DataError: numbers of rows differ.
    """
    mine = {**plan.settings(), **facts}
    peers = [name for name in plan.parties if name != mesh.me]
    content = json.dumps({"facts": mine, "rows": rows}).encode()
    for peer in peers:
        mesh.send(peer, "settings", [content])
    for peer in peers:
        try:
            told = json.loads(bytes(mesh.recv(peer, "settings")[0]))
            theirs, count = dict(told["facts"]), told["rows"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ProtocolError(f"'{peer}' sent no settings: {error!r}.") from None
        for name in sorted(set(mine) & set(theirs)):
            if mine[name] != theirs[name]:
                raise ConfigError(
                    f"{name} is {mine[name]!r} at '{mesh.me}' and {theirs[name]!r} at '{peer}': "
                    "state the same everywhere."
                )
        if rows is None:
            rows = count
        elif count is not None and count != rows:
            raise DataError(f"'{peer}' has {count} rows, and '{mesh.me}' or another {rows}: align the tables first.")
    if not isinstance(rows, int) or rows < 0:
        raise ProtocolError(f"no party stated how many rows there are, but {rows!r}.")
    return rows
