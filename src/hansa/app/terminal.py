"""What the command line says, and where: people's lines, or one JSON object a line for machines.

| | people (`--format text`) | machines (`--format json`) |
|---|---|---|
| results | stdout | stdout, one JSON object a line, nothing else |
| hints | stderr | stderr |
| errors | stderr, `error: …` | stderr, one JSON object |

Colours and live parts are for terminals alone. `rich` is imported when something is first shown.
"""

import json
import math
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from hansa.core.errors import HansaError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Settings:
    """The global options of this call."""

    format: str = "text"
    verbose: bool = False
    results: TextIO | None = None  # where JSON goes, while stdout is turned to stderr; None: stdout itself

    @property
    def json(self) -> bool:
        """Whether a machine reads."""
        return self.format == "json"


settings = Settings()


def console(stderr: bool = False) -> "Console":
    """A console on the stream as it is now (a test may have replaced it)."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def is_live() -> bool:
    """Whether stdout is a terminal that a person looks at."""
    return sys.stdout.isatty() and not settings.json


def emit(event: str, **fields: Any) -> None:
    """One result for machines; nothing in text mode."""
    if settings.json:
        print(json.dumps({"event": event, **fields}, default=str, allow_nan=False), file=settings.results, flush=True)


def say(text: str, style: str | None = None) -> None:
    """One result for people; nothing in JSON mode."""
    if not settings.json:
        if is_live():
            console().print(text, style=style, markup=False)
        else:
            print(text, flush=True)


def hint(text: str) -> None:
    """What helps and is no result."""
    if sys.stderr.isatty():
        console(stderr=True).print(text, style="dim", markup=False)
    else:
        print(text, file=sys.stderr, flush=True)


def table(event: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Rows as a table for people, or one JSON object each.

    Args:
      event: name of a row in JSON.
      rows: with at least these columns; all fields go into JSON.
      columns: what people see, in order.
      empty: said to people if there are no rows.
    """
    for row in rows:
        emit(event, **row)
    if settings.json:
        return
    if not rows:
        say(empty)
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [[*columns], *cells]) for i in range(len(columns))]
    if is_live():
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column, width in zip(columns, widths, strict=True):
            drawn.add_column(column, no_wrap=width <= 40, overflow="fold")
        for line in cells:
            drawn.add_row(*map(plain, line))
        console().print(drawn)
        return
    for line in [[*columns], *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)


def plain(text: str) -> Any:
    """Text for rich that is not read as markup."""
    from rich.text import Text

    return Text(text)


def fail(error: BaseException) -> int:
    """Says what went wrong and gives the exit code of its class."""
    if isinstance(error, KeyboardInterrupt):
        code, name, message = (
            130,
            "interrupted",
            str(error) or "interrupted: start again with the same command to go on",
        )
    elif isinstance(error, HansaError):
        code, name, message = error.exit_code, type(error).__name__, str(error)
    else:
        code, name = 1, type(error).__name__
        said = f"{name}: {error}" if str(error) else name
        message = f"unexpected {said}"
        if not settings.verbose:
            message += " (run it again with --verbose for the traceback; if it is ours, report it)"
    lead = "" if isinstance(error, KeyboardInterrupt) else "error: "
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    if settings.verbose and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error, file=sys.stderr)
    if settings.json:
        _error_for_machines(name, code, message, notes)
    elif sys.stderr.isatty():
        from rich.text import Text

        shown = console(stderr=True)
        shown.print(Text.assemble((lead, "bold red"), message))
        for note in notes:
            shown.print(Text(f"       {note}", style="dim"))
    else:
        print("\n".join([lead + message, *(f"       {note}" for note in notes)]), file=sys.stderr, flush=True)
    return code


def misused(message: str) -> int:
    """Says to machines that the command line itself is wrong, and gives the exit code; people are shown Typer's box."""
    _error_for_machines("usage", 2, f"{message} See `hansa COMMAND --help`.", [])
    return 2


def _error_for_machines(name: str, code: int, message: str, notes: Sequence[str]) -> None:
    facts = {"event": "error", "error": name, "exit_code": code, "message": message, "notes": list(notes)}
    print(json.dumps(facts), file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Bytes for people: 1.2 MB is 1,200,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def number(value: Any) -> str:
    """A metric for people; `–` where there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def span(seconds: float) -> str:
    """A duration for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(value: Any) -> str:
    """A time (seconds since 1970, or ISO text) in this machine's zone, to the second."""
    if isinstance(value, int | float) and value:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    return re.sub(r"(\.\d+)?(\+00:00|Z)$", "", str(value or "")).replace("T", " ")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
