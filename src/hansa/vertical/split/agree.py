"""Parties compare what must be the same before any data moves, and name what is not."""

from typing import Any

from hansa.core.errors import ConfigError, DataError, ProtocolError
from hansa.core.runtime import Mesh
from hansa.runtimes.mesh.messages import told
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
    said = told(mesh, "settings", [mine, rows], tuple[dict[str, Any], int | None], plan.parties)
    for peer, (theirs, count) in said.items():
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
    if rows is None:
        raise ProtocolError("no party stated how many rows there are.")
    return rows
