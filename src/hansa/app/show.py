"""The rounds of a run as they are committed: a live table in a terminal, plain lines elsewhere, JSON for machines.

           train
    round   loss  accuracy  clients       up     down     time  dropped
     1/50  0.6931    0.5012    10/10    21 kB    21 kB    12 ms
     2/50  0.5120    0.8122     9/10    19 kB    21 kB    14 ms  clinic-7 (its lease ran out)
    ━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━ 2/50 0:00:01 left

Finished rounds scroll by above and stay; only the bar below them is redrawn.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hansa.app.terminal import console, emit, is_live, number, say, settings, size, span
from hansa.core.errors import MissingExtra
from hansa.core.job import Job

REFRESH_S = 0.1

_GROUPS = {"train": "train", "workers": "workers", "central": "test"}  # field of a record: what people see


class Rounds:
    """Shows the rounds of one run; a context manager.

    Args:
      name: of the job, for the bar.
      total: rounds in all; None if it is not known.
      done: rounds that were committed before.
      epsilon: rounds to the ε they cost, for jobs with protective noise.
    """

    def __init__(
        self, name: str, total: int | None, done: int = 0, epsilon: Callable[[int], float | None] | None = None
    ) -> None:
        self.total, self.done = total, done
        self.shown: Mapping[str, Any] = {}
        self._name, self._epsilon = name, epsilon
        self._private = False
        self._columns: dict[str, int] = {}
        self._seen: set[str] = set()
        self._rows: list[Any] = []
        self._since_heading = 0
        self._shown_at = 0.0
        self._progress: Any = None
        self._bar: Any = None
        self._live: Any = None
        self._waiting = ""

    def __enter__(self) -> "Rounds":
        if is_live():
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            out = console()
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("left"), console=out,
            )  # fmt: skip
            self._bar = self._progress.add_task(plain_name(self._name), total=self.total, completed=self.done)
            self._live = Live(console=out, transient=True, refresh_per_second=8, get_renderable=self._below)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._flush()
            self._live.stop()
            self._progress = None

    def _below(self) -> Any:
        """The bar, and above it for whom the run waits."""
        from rich.console import Group
        from rich.text import Text

        parts = [Text(self._waiting, style="yellow", overflow="fold", no_wrap=False)] if self._waiting else []
        return Group(*parts, self._progress)

    def add(self, record: Mapping[str, Any], spent: Mapping[str, float] | None = None) -> None:
        """Shows one committed round.

        Args:
          record: as `Record.to_json` makes it.
          spent: `epsilon` and `delta` until here, where a server says so; else they are worked out here.
        """
        self.shown, self.done = record, int(record["round"]) + 1
        epsilon = self._epsilon(self.done) if self._epsilon is not None else (spent or {}).get("epsilon")
        self._private = self._epsilon is not None or spent is not None
        if settings.json:
            emit("round", **record, **({**(spent or {}), "epsilon": epsilon} if self._private else {}))
            return
        metrics = metrics_of(record)
        if self._progress is None:
            say(self._line(record, metrics, epsilon))
            return
        self._row(record, metrics, epsilon)
        self._waiting = ""
        if time.monotonic() - self._shown_at > REFRESH_S:  # drawing a row costs more than a small round
            self._flush()

    def describe(self, name: str, total: int | None) -> None:
        """What became known of the run since it was first shown."""
        self.total = total or self.total
        if self._progress is not None:
            self._progress.update(self._bar, description=plain_name(name), total=self.total)

    def waiting(self, what: str) -> None:
        """Says below the table whom or what the run waits for; an empty text takes it away."""
        if self._progress is not None:
            self._waiting = what
            self._flush()

    def _where(self) -> str:
        return f"{self.done}/{self.total}" if self.total else str(self.done)

    def _line(self, record: Mapping[str, Any], metrics: Mapping[str, float], epsilon: float | None) -> str:
        parts = [
            f"round {self._where()}", *(f"{name} {number(value)}" for name, value in metrics.items()),
            f"clients {record['counted']}/{record['asked']}",
            f"up {size(record['up_bytes'])}", f"down {size(record['down_bytes'])}", span(record["seconds"]),
        ]  # fmt: skip
        if self._private:
            parts.append(f"ε {number(epsilon)}")
        if record.get("dropped"):
            parts.append(f"dropped: {dropped(record['dropped'])}")
        if reasons := record.get("void"):
            parts.append(void(reasons))
        return "  ".join(parts)

    def _row(self, record: Mapping[str, Any], metrics: Mapping[str, float], epsilon: float | None) -> None:
        from rich.text import Text

        cells = {
            "round": self._where(), **{name: number(value) for name, value in metrics.items()},
            "clients": f"{record['counted']}/{record['asked']}", "up": size(record["up_bytes"]),
            "down": size(record["down_bytes"]), "time": span(record["seconds"]),
        }  # fmt: skip
        if self._private:
            cells["ε"] = number(epsilon)
        out = self._progress.console
        if not set(cells) <= self._seen:
            self._seen |= set(cells)
            self._columns = columns(cells, self._seen, len(str(self.total or 999)), out.width)
            self._since_heading = 0
        if self._since_heading % max(10, out.height - 4) == 0:  # so that one is always in view
            self._rows += [
                Text(line, style="bold", no_wrap=True, overflow="ellipsis") for line in heading(self._columns)
            ]
        self._since_heading += 1
        line = "  ".join(cells.get(name, "–").rjust(width) for name, width in self._columns.items())
        text = Text(line, no_wrap=True, overflow="ellipsis")
        if why := ", ".join(filter(None, [dropped(record.get("dropped") or {}), void(record.get("void") or ())])):
            left = max(20, out.width - len(text) - 3)
            text.append("  " + (why if len(why) <= left else why[: left - 1] + "…"), style="yellow")
        self._rows.append(text)

    def _flush(self) -> None:
        """Shows what was added since the last time."""
        from rich.console import Group

        rows, self._rows = self._rows, []
        self._progress.update(self._bar, completed=self.done)
        if rows:
            self._progress.console.print(Group(*rows))
        self._shown_at = time.monotonic()


def columns(cells: Iterable[str], seen: Iterable[str], digits: int, width: int) -> dict[str, int]:
    """The columns of the table and their widths; where the terminal is too narrow, the least missed are left out."""
    metrics = sorted(
        {name for name in (*cells, *seen) if " " in name},
        key=lambda name: (list(_GROUPS.values()).index(name.split()[0]), name.split()[1:] != ["loss"], name),
    )
    names = ["round", *metrics, "clients", "up", "down", "time", *(["ε"] if "ε" in cells else [])]
    least = {"round": 2 * digits + 1, "clients": 7}
    found = {name: max(len(name.split(" ")[-1]), least.get(name, 7)) for name in names}
    for spare in ("down", "up", *(name for name in names if name.startswith("train ")), "time"):
        if sum(found.values()) + 2 * len(found) > width and spare in found:
            del found[spare]
    return found


def heading(widths: Mapping[str, int]) -> list[str]:
    """Two lines: whose metrics, and the names of the columns."""
    groups = [name.split(" ")[0] if " " in name else "" for name in widths]
    first = [group if group != before else "" for before, group in zip(["", *groups], groups, strict=False)]
    above = "  ".join(group.rjust(width) for group, width in zip(first, widths.values(), strict=True)).rstrip()
    below = "  ".join(name.split(" ", 1)[-1].rjust(width) for name, width in widths.items())
    return [above, below + "  dropped"] if above else [below + "  dropped"]


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's metrics under the names people see: `train loss`, `test loss` (central), `workers loss`."""
    return {
        f"{shown} {name}": value
        for group, shown in _GROUPS.items()
        for name, value in _loss_first(record.get(group) or {})
    }


def _loss_first(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(metrics.items(), key=lambda metric: (metric[0] != "loss", metric[0]))


def dropped(reasons: Mapping[str, str]) -> str:
    """Who is not in the round and why, the first few by name."""
    named = [f"{client} ({reason})" for client, reason in list(reasons.items())[:3]]
    more = len(reasons) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def void(reasons: Sequence[str]) -> str:
    """How many attempts were void before the one that counted, and why the last was; empty if none were."""
    attempts = f"{len(reasons)} attempt{'s' if len(reasons) > 1 else ''}"
    return f"after {attempts} that came to nothing ({reasons[-1]})" if reasons else ""


def summary(record: Mapping[str, Any]) -> str:
    """The last metrics as one phrase."""
    return ", ".join(f"{name} {number(value)}" for name, value in metrics_of(record).items())


def plain_name(text: str) -> str:
    """Text as rich's progress columns show it literally."""
    return text.replace("[", "\\[")


@dataclass(frozen=True)
class Epsilon:
    """What so many rounds of a job cost in privacy: a function of their number, at a fixed δ.

    Args:
      job: with protective noise.
      population: clients that could be asked.
      delta: the job's own, else 1e-5 or a tenth of 1 / population if that is less.
    """

    job: Job
    population: int
    delta: float

    def __call__(self, rounds: int) -> float | None:
        """ε after so many rounds; None where nothing here can tell."""
        try:
            from hansa.privacy import epsilon

            return float(epsilon(replace(self.job, rounds=rounds), population=self.population, delta=self.delta))
        except MissingExtra:
            return None


def epsilon_of(job: Job, population: int) -> Epsilon | None:
    """The cost in privacy of a job's rounds; None if it has no protective noise."""
    if not job.bind(population).events():
        return None
    return Epsilon(job, population, job.delta or min(1e-5, 0.1 / population))
