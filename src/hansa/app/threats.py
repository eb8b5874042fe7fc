"""`hansa threats`: who sees what, against whom, under which assumption, as stages and reducers declare it.

The table in docs/threat-models.md is what this prints; a test holds the two against each other.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence

from hansa import stages
from hansa.app.terminal import emit, hint, say, settings
from hansa.core.errors import MissingExtra, NotFound
from hansa.core.pipeline import Reducer, Stage
from hansa.privacy.records import THREATS
from hansa.privacy.threats import Adversary, Sees, declared

RECORDS = "LocalWork(dp=…)"


@functools.cache
def mechanisms() -> Mapping[str, tuple[Sees, ...]]:
    """All stages and reducers, and record-level privacy, with their declarations, in order of names; says what is left
    out because its extra is not installed.
    """
    found: dict[str, tuple[Sees, ...]] = {}
    for file in pkgutil.iter_modules(stages.__path__):
        try:
            module = importlib.import_module(f"{stages.__name__}.{file.name}")
        except MissingExtra as why:
            hint(f"left out: {why}")
            continue
        for name, kind in inspect.getmembers(module, inspect.isclass):
            own = kind.__module__ == module.__name__ and not name.startswith("_")
            if own and issubclass(kind, Stage | Reducer) and not inspect.isabstract(kind):
                found[name] = declared(kind)
    return dict(sorted({**found, RECORDS: THREATS}.items()))


def rows() -> list[tuple[list[str], Sees]]:
    """The table: mechanisms that declare the same stand together; for each, its adversaries in their order."""
    alike: dict[tuple[Sees, ...], list[str]] = {}
    for name, threats in mechanisms().items():
        if threats:
            alike.setdefault(threats, []).append(name)
    order = list(Adversary)
    groups = sorted(alike.items(), key=lambda group: (_strength(group[0]), group[1]))
    return [(names, seen) for threats, names in groups for seen in sorted(threats, key=lambda s: order.index(s.who))]


def _strength(threats: Sequence[Sees]) -> int:
    """Reducers first, then noise: what speaks of other workers is a reducer."""
    return 0 if any(seen.who == Adversary.WORKER for seen in threats) else 1


def silent() -> list[str]:
    """What hides nothing from anybody, by its own declaration."""
    return [name for name, threats in mechanisms().items() if not threats]


def page() -> str:
    """The table in Markdown, and those that are not in it."""
    lines = ["| with | against | learns | provided that |", "|---|---|---|---|"]
    before: list[str] = []
    for names, seen in rows():
        shown = ", ".join(f"`{name}`" for name in names) if names != before else ""
        lines.append(f"| {shown} | {seen.who} | {seen.what} | {seen.provided or '–'} |")
        before = names
    hides = ", ".join(f"`{name}`" for name in silent())
    return "\n".join([*lines, "", f"Declared to hide nothing from anybody: {hides}."])


def threats(name: str | None = None) -> None:
    """Runs `hansa threats`.

    Raises:
      NotFound: no stage or reducer has this name.
    """
    if name is not None and name not in mechanisms():
        raise NotFound(f"'{name}' is no stage or reducer: choose from {', '.join(mechanisms())}.")
    for names, seen in rows():
        if name is None or name in names:
            emit("threat", mechanisms=names, against=str(seen.who), learns=seen.what, provided=seen.provided)
    if settings.json:
        return
    if name is None:
        say(page())
        return
    for seen in mechanisms()[name] or ():
        say(f"{seen.who}: {seen.what}" + (f"; provided that {seen.provided}" if seen.provided else ""))
    if not mechanisms()[name]:
        say(f"{name} is declared to hide nothing from anybody")
