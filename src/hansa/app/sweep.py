"""`hansa sweep`: one run for each combination of settings and each seed; then a table, a CSV file and a picture.

    sweep/                                   one sweep at a time (`lock`)
      runs/lr=0.1,cohort=5,seed=0-1f3a/      one run's state, as `hansa simulate --state` keeps it
      sweep.csv                              one row a run
      sweep.png                              the metric over rounds, and where each setting ends

A run's folder is named by its settings and its job's fingerprint, so a sweep that was killed goes on where it was, a
larger grid runs only what is new, and a job that was changed does not take up the runs of the old one.
"""

import csv
import hashlib
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.app.folder import check_folder, state_in
from hansa.app.jobs import read_settings
from hansa.app.show import plain_name
from hansa.app.simulate import ClientMemories, runtime_of
from hansa.app.terminal import console, emit, hint, is_live, number, say, span, table
from hansa.core.data import Clients
from hansa.core.errors import ConfigError, HansaError, MissingExtra, StorageFull, TrainingFailed
from hansa.core.job import Job
from hansa.core.runtime import Runtime
from hansa.core.train import Record
from hansa.runtimes.folder_lock import lock_folder
from hansa.runtimes.jobfile import clients_of, job_of, load_module
from hansa.runtimes.observe.metric import evaluates, metric_of, more_is_better, names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = Mapping[str, str]  # one combination of settings
SHOWN = 10  # settings with a colour of their own in the picture


@dataclass
class Run:
    """One run of a sweep.

    Args:
      point: its settings.
      seed: of the job.
      job: with both.
      state: `waiting`, `done` or `failed`.
      reason: why it failed.
      records: of its rounds.
    """

    point: Point
    seed: int
    job: Job
    state: str = "waiting"
    reason: str = ""
    records: Sequence[Record] = field(default_factory=tuple)

    def value(self, metric: str) -> float | None:
        """The metric as it was measured last."""
        found = [value for record in self.records if (value := metric_of(record, metric)) is not None]
        return found[-1] if found else None

    @property
    def seconds(self) -> float:
        """Of all its rounds."""
        return sum(record.seconds for record in self.records)


def sweep(
    job: Path,
    *,
    grid: Sequence[str],
    metric: str | None = None,
    maximise: bool | None = None,
    seeds: int = 1,
    out: Path = Path("sweep"),
    clients: int | None = None,
    settings: Sequence[str] = (),
    config: Path | None = None,
    runtime: str = "local",
    processes: int | None = None,
    address: str | None = None,
    checkpoint_every: int = 10,
) -> None:
    """Runs `hansa sweep`; arguments are its options.

    Raises:
      ConfigError: the grid, an option or the folder is wrong.
      JobError: a combination has faults; no run is begun then.
      TrainingFailed: some runs failed; the others are compared all the same, and the same command tries these again.
    """
    how, points = runtime_of(runtime, processes, address), combinations(grid)
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least 1.")
    if checkpoint_every < 1:
        raise ConfigError(f"--checkpoint-every {checkpoint_every}: at least 1 round.")
    check_folder(out, "--out")
    given, module = read_settings(settings, config), load_module(job)
    people = clients_of(module, clients)
    runs = []
    for point in points:
        changed = job_of(module, {**given, **point})
        if "seed" in point and seeds > 1:
            raise ConfigError("--grid seed=… and --seeds: give one of them.")
        runs += [Run(point, changed.seed + i, replace(changed, seed=changed.seed + i)) for i in range(seeds)]
    for run in runs:
        _check(run, len(people))
    with _folder(out):
        _train(how, runs, people, out, checkpoint_every)
        done = [run for run in runs if run.state == "done"]
        name = metric or (_usual(done) if done else "")
        if done:
            _compare(runs, points, name, _maximise(maximise, name, runs[0].job), out)
    failed = [run for run in runs if run.state == "failed"]
    if failed:
        raise TrainingFailed(
            f"{len(failed)} of {len(runs)} runs failed, the first ({label(failed[0].point)}) because of "
            f"{failed[0].reason.rstrip('.')}. The same command tries them again."
        )


def combinations(grid: Sequence[str]) -> list[Point]:
    """All combinations of a grid's values; commas inside brackets or quotes part nothing.

    >>> combinations(["lr=0.1,0.2", "cohort=5"])
    [{'lr': '0.1', 'cohort': '5'}, {'lr': '0.2', 'cohort': '5'}]
    """
    axes: dict[str, list[str]] = {}
    for one in grid:
        key, equals, text = one.partition("=")
        values = _parted(text)
        if not key or not equals or not all(values):
            raise ConfigError(f"--grid {one}: write KEY=A,B, as in algorithm.work.lr=0.05,0.1.")
        if key in axes:
            raise ConfigError(f"--grid {key} is given twice: put all its values in one.")
        if len(set(values)) < len(values):
            raise ConfigError(f"--grid {one}: a value is there twice.")
        axes[key] = values
    if not axes:
        raise ConfigError("there is nothing to sweep over: give --grid KEY=A,B at least once.")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def label(point: Point) -> str:
    """A combination for people: `lr=0.1 cohort=5`.

    >>> label({"algorithm.work.lr": "0.1", "cohort": "5"})
    'lr=0.1 cohort=5'
    """
    return " ".join(f"{name}={value}" for name, value in zip(_short(list(point)), point.values(), strict=True))


def _short(keys: Sequence[str]) -> list[str]:
    """The last words of dotted keys, where they are enough to tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]


def _parted(text: str) -> list[str]:
    """A text at its outermost commas."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "[{(") - (letter in ")}]")
        if letter == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _check(run: Run, population: int) -> None:
    """All faults of a combination, before anything is run."""
    try:
        run.job.check(population)
    except HansaError as error:
        error.add_note(f"with {label(run.point)}")
        raise


def _folder(out: Path) -> Any:
    """The sweep's folder, held for this process."""
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        return closing(lock_folder(out, "sweep", "--out"))
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be used ({error.strerror}): choose another folder.") from None


def _place(run: Run, population: int) -> str:
    """The name of a run's folder; readable, and different for every job."""
    words = label(run.point).replace(" ", ",") + f",seed={run.seed}"
    readable = "".join(letter if letter.isalnum() or letter in "=,.-_" else "_" for letter in words)[:80]
    whole = hashlib.sha256(f"{sorted(run.point.items())} {population} {run.job.fingerprint()}".encode())
    return f"{readable}-{whole.hexdigest()[:8]}"


def _train(how: Runtime, runs: Sequence[Run], people: Clients, out: Path, every: int) -> None:
    """Trains what is not done yet."""
    emit("started", runs=len(runs), clients=len(people), out=str(out))
    with _Progress(runs) as progress:
        for at, run in enumerate(runs):
            try:
                kept = _one(how, run, people, out / "runs" / _place(run, len(people)), every, progress)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted after {at} of {len(runs)} runs: the same command goes on"
                ) from None
            facts = {"settings": dict(run.point), "seed": run.seed, "state": run.state, "rounds": len(run.records)}
            last = run.records[-1].to_json() if run.records else {}
            emit("run", **facts, last=last, seconds=run.seconds, reason=run.reason)
            if not progress.live:
                how_it_went = run.reason if run.state == "failed" else "was done before" if kept else span(run.seconds)
                say(f"{at + 1}/{len(runs)}  {label(run.point)} seed={run.seed}: {run.state}, {how_it_went}")


def _one(how: Runtime, run: Run, people: Clients, place: Path, every: int, progress: "_Progress") -> bool:
    """Trains one run from where it was; whether it was done before."""
    with state_in(place, "hansa sweep") as store:
        known = store.runs()
        name = str(known[-1]["id"]) if known else store.add_run(
            name=run.job.name, bundle="", submitter="", fingerprint=run.job.fingerprint(), rounds=run.job.rounds
        )  # fmt: skip
        kept = store.run(name)
        before = len(kept.records())
        progress.begin(run, before)
        store.set_state(name, "running")
        try:
            history = how.run(
                run.job, people, store=kept, memories=ClientMemories(place / "memory" / name),
                checkpoint_every=every, observe=progress.add,
            )  # fmt: skip
        except StorageFull:
            raise
        except Exception as error:  # the others may well go through, and the sweep ends with this one's reason
            run.state = "failed"
            run.reason = str(error) if isinstance(error, HansaError) else f"{type(error).__name__}: {error}"
            run.records = tuple(Record.from_json(record) for record in kept.records())
            store.set_state(name, "failed", run.reason)
            progress.finish(run)
            return False
        except KeyboardInterrupt:
            store.set_state(name, "stopped", "interrupted")
            raise
        store.set_state(name, "done")
        run.state, run.records = "done", history.rounds[: run.job.rounds]
        progress.finish(run)
        return before >= run.job.rounds


class _Progress:
    """One bar over all rounds of all runs, with the time left; nothing where no person looks."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.live = is_live()
        self._total, self._before = sum(run.job.rounds for run in runs), 0
        self._bar: Any = None

    def __enter__(self) -> "_Progress":
        if self.live:
            from rich import progress as rich

            self._bar = rich.Progress(
                rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(),
                rich.TextColumn("rounds"), rich.TimeRemainingColumn(compact=True), rich.TextColumn("left"),
                console=console(), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, run: Run, before: int) -> None:
        """A run begins, with so many rounds done before."""
        if self._bar is not None:
            name = plain_name(f"{label(run.point)} seed={run.seed}")
            self._bar.update(self._task, description=name, completed=self._before + before)

    def add(self, record: Record) -> None:
        """A round is over."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._before + record.round + 1)

    def finish(self, run: Run) -> None:
        """A run is over."""
        self._before += run.job.rounds


# -- comparing


def _usual(done: Sequence[Run]) -> str:
    """The metric to compare where none was named: the one the best model is kept by, else accuracy, else loss."""
    best = done[0].job.evaluation.best
    names = names_of([record for run in done for record in run.records])
    names = [name for name in names if not name.startswith("train.")] if evaluates(done[0].job) else names
    plain = [name.partition(".")[2] for name in names]
    for wanted in (best, "accuracy", "loss"):
        if wanted in plain:
            return wanted
    if not names:
        raise ConfigError("the job measures nothing that could be compared: give it an evaluation.")
    return plain[0]


def _maximise(given: bool | None, metric: str, job: Job) -> bool:
    return more_is_better(metric, job) if given is None else given


def _compare(runs: Sequence[Run], points: Sequence[Point], metric: str, maximise: bool, out: Path) -> None:
    """The table, the file and the picture."""
    done = [run for run in runs if run.state == "done"]
    if all(run.value(metric) is None for run in done):
        names = names_of([record for run in done for record in run.records])
        raise ConfigError(f"--metric {metric} is not measured: the runs have {', '.join(names) or 'no metrics'}.")
    rows = [_row(point, [run for run in runs if run.point == point], metric) for point in points]
    ranked = [row for row in rows if row["median"] is not None]
    ranked.sort(key=lambda row: row["median"], reverse=maximise)
    rows = [*ranked, *(row for row in rows if row["median"] is None)]
    _write_csv(runs, metric, out / "sweep.csv")
    names = _short(list(points[0]))
    shown = [
        {**row, **dict(zip(names, row["settings"].values(), strict=True)), metric: number(row["median"]),
         "range": _range(row), "runs": f"{row['done']}/{row['asked']}", "time": span(row["seconds"])}
        for row in rows
    ]  # fmt: skip
    table("setting", shown, [*names, metric, "range", "runs", "time"], "no run")
    emit("compared", metric=metric, maximise=maximise, best=rows[0]["settings"], csv=str(out / "sweep.csv"))
    best = " ".join(f"--set {key}={value}" for key, value in rows[0]["settings"].items())
    say(f"best {metric} ({'most' if maximise else 'least'}, median over seeds, at the last evaluation): {best}")
    try:
        draw(runs, [row["settings"] for row in rows], metric, out / "sweep.png")
        say(f"written to {out / 'sweep.csv'} and {out / 'sweep.png'}")
    except MissingExtra as error:
        say(f"written to {out / 'sweep.csv'}")
        hint(f"no picture was drawn: {error}")


def _row(point: Point, runs: Sequence[Run], metric: str) -> dict[str, Any]:
    values = [value for run in runs if run.state == "done" and (value := run.value(metric)) is not None]
    values = [value for value in values if math.isfinite(value)]
    return {
        "settings": dict(point), "metric": metric, "median": statistics.median(values) if values else None,
        "least": min(values, default=None), "most": max(values, default=None),
        "done": sum(run.state == "done" for run in runs), "asked": len(runs),
        "seconds": statistics.median([run.seconds for run in runs]),
    }  # fmt: skip


def _range(row: Mapping[str, Any]) -> str:
    if row["median"] is None or row["least"] == row["most"]:
        return "–"
    return f"{number(row['least'])} to {number(row['most'])}"


def _write_csv(runs: Sequence[Run], metric: str, path: Path) -> None:
    """One row a run, with all metrics as they were measured last."""
    names = names_of([record for run in runs for record in run.records])
    beside = path.with_name(f".{path.name}.partial")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*runs[0].point, "seed", "state", "rounds", "seconds", *names, "reason"])
        for run in runs:
            values = ["" if (value := run.value(name)) is None else value for name in names]
            seconds = round(run.seconds, 3)
            writer.writerow([*run.point.values(), run.seed, run.state, len(run.records), seconds, *values, run.reason])
    beside.replace(path)


def draw(runs: Sequence[Run], ranked: Sequence[Point], metric: str, path: Path) -> "Figure":
    """The metric over rounds, and where each setting ends: median over seeds, with the range between.

    Args:
      runs: those that are not done are left out.
      ranked: settings, the best first; the first ten have a colour, the others are grey.
      metric: which.
      path: a PNG, SVG or PDF file.

    Raises:
      MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("the picture of a sweep", "matplotlib", "plot") from None
    height = min(max(3.6, 1.4 + 0.3 * len(ranked)), 12.0)
    figure = Figure(figsize=(11.0, height), dpi=120, layout="constrained")
    curves, ends = figure.subplots(1, 2, width_ratios=[3, 2])
    colours: Any = mpl.colormaps["tab10"]
    drawn = [point for point in ranked if any(run.point == point and run.state == "done" for run in runs)]
    for at, point in reversed(list(enumerate(drawn))):
        colour = colours(at) if at < SHOWN else "0.75"
        mine = [run for run in runs if run.point == point and run.state == "done"]
        rounds, low, middle, high = _band(mine, metric)
        curves.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
        curves.plot(rounds, middle, color=colour, linewidth=1.6, marker="o" if len(rounds) < 3 else "")
        finals = [value for run in mine if (value := run.value(metric)) is not None and math.isfinite(value)]
        if finals:
            ends.plot([min(finals), max(finals)], [at, at], color=colour, linewidth=2.5, solid_capstyle="round")
            ends.plot([statistics.median(finals)], [at], "o", color=colour, markersize=7)
    curves.set(xlabel="round", ylabel=metric)
    curves.grid(alpha=0.25)
    curves.spines[["top", "right"]].set_visible(False)
    ends.set_yticks(range(len(drawn)), [label(point) for point in drawn], fontsize=9 if len(drawn) <= 24 else 6)
    ends.set_ylim(len(drawn) - 0.5, -0.5)
    ends.set(xlabel=f"{metric} at the end")
    ends.grid(alpha=0.25, axis="x")
    ends.spines[["top", "right"]].set_visible(False)
    seeds = len({run.seed for run in runs})
    curves.set_title("median and range of " + (f"{seeds} seeds" if seeds > 1 else "one run"), loc="left", fontsize=10)
    ends.set_title("best first", loc="left", fontsize=10)
    figure.savefig(path)
    return figure


def _band(runs: Sequence[Run], metric: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Rounds (from 1), and the least, median and largest value in each."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for record in run.records:
            value = metric_of(record, metric)
            if value is not None and math.isfinite(value):
                values.setdefault(record.round + 1, []).append(value)
    rounds = sorted(values)
    return (
        rounds,
        [min(values[at]) for at in rounds],
        [statistics.median(values[at]) for at in rounds],
        [max(values[at]) for at in rounds],
    )
