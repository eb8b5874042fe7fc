"""What an audit leaves behind: `report.md` for people, `report.json` for machines, and a picture for each attack."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hansa.core.errors import MissingExtra
from hansa.core.job import Job

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
SHOWN = 8  # examples in one picture


class Verdict(StrEnum):
    """What an attack came to."""

    LEAKS = "leaks"
    HOLDS = "holds"
    BROKEN = "broken"
    NOT_RUN = "not run"


MEANINGS = {
    Verdict.LEAKS: "the attack learnt what it was after",
    Verdict.HOLDS: "it did not; a stronger one may",
    Verdict.BROKEN: "the job is proven to break its own promise",
    Verdict.NOT_RUN: "it does not apply, and the reason is given",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack.

    Args:
      attack: its name.
      verdict: what it came to.
      says: the same in a sentence with its numbers; why it was not run, if it was not.
      numbers: for machines.
      picture: draws it on an empty figure.
    """

    attack: str
    verdict: Verdict
    says: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    picture: Draw | None = None

    def to_json(self) -> dict[str, Any]:
        """Without the picture."""
        return {"attack": self.attack, "verdict": str(self.verdict), "says": self.says, "numbers": dict(self.numbers)}


def write(out: Path, job: Job, population: int, findings: Sequence[Finding]) -> Path:
    """Writes the report into a folder, which is made if need be.

    Returns:
      The path of `report.md`. Without matplotlib it has no pictures, and says so.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = {finding.attack: _draw(finding, out / f"{finding.attack}.png") for finding in findings}
    reducer = job.pipeline.reducer
    stages = " → ".join(map(str, [*job.pipeline.stages, reducer]))
    sees = {"each": "each contribution", "total": "their total alone"}[getattr(reducer, "sees", "each")]
    lines = [
        f"# Audit of {job.name}", "",
        f"{population} clients, {job.rounds} rounds; `{stages}`. The server sees {sees}.", "",
        "| attack | verdict | what was seen |", "|---|---|---|",
        *(f"| {f.attack} | **{f.verdict}** | {f.says.replace('|', chr(92) + '|')} |" for f in findings), "",
        *(f"- **{verdict}**: {meaning}" for verdict, meaning in MEANINGS.items()), "",
    ]  # fmt: skip
    for finding in findings:
        if drawn[finding.attack]:
            lines += [f"## {finding.attack}", "", f"![{finding.attack}]({finding.attack}.png)", ""]
        elif finding.picture is not None:
            lines += [f"## {finding.attack}", "", "No picture: `pip install 'hansa[plot]'`.", ""]
    (out / "report.md").write_text("\n".join(lines), encoding="utf-8")
    facts = {
        "job": job.name, "fingerprint": job.fingerprint(), "clients": population, "server_sees": sees,
        "findings": [finding.to_json() for finding in findings],
    }  # fmt: skip
    (out / "report.json").write_text(json.dumps(facts, indent=1, default=float) + "\n", encoding="utf-8")
    return out / "report.md"


def _draw(finding: Finding, path: Path) -> bool:
    if finding.picture is None:
        return False
    try:
        figure = _figure()
    except MissingExtra:
        return False
    finding.picture(figure)
    figure.savefig(path)
    return True


def _figure() -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("the pictures of an audit", "matplotlib", "plot") from None
    return Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")


# ── pictures


def pairs(truth: np.ndarray, found: np.ndarray, image: tuple[int, int] | None = None) -> Draw:
    """True examples above, what was recovered below: as images, or as lines of numbers.

    Args:
      truth, found: shape (examples, ...); each true one is shown with the nearest found.
      image: height and width of an example; None for lines.
    """
    real, said = truth.reshape(len(truth), -1)[:SHOWN].astype(np.float64), found.reshape(len(found), -1)
    nearest = said[((real[:, None] - said[None]) ** 2).sum(axis=2).argmin(axis=1)]

    def draw(figure: "Figure") -> None:
        if image is None:
            axes = figure.subplots()
            axes.plot(real[0], "o", color="#64748b", label="the client's example")
            axes.plot(nearest[0], "x", color="#b45309", label="what the server recovered")
            axes.set(xlabel="input", ylabel="value")
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
            return
        beside = len(real) == 1
        grid = figure.subplots(*((1, 2) if beside else (2, len(real))), squeeze=False)
        for row, (name, rows) in enumerate({"the client's": real, "recovered by the server": nearest}.items()):
            axes = grid[0][row : row + 1] if beside else grid[row]
            for axis, flat in zip(axes, rows, strict=True):
                axis.imshow(_grey(flat, image), cmap="gray_r", vmin=real.min(), vmax=real.max())
                axis.set(xticks=[], yticks=[])
            axes[0].set_title(name, fontsize=10, loc="left")

    return draw


def _grey(flat: np.ndarray, image: tuple[int, int]) -> np.ndarray:
    shown: np.ndarray = flat.reshape(-1, *image).mean(axis=0)
    return shown


def curve(false: np.ndarray, true: np.ndarray) -> Draw:
    """Members found against false alarms, both on logarithmic axes: the left end is what harms."""

    def draw(figure: "Figure") -> None:
        axes, low = figure.subplots(), max(1e-4, 0.5 / max(1, len(false)))
        axes.plot([low, 1], [low, 1], color="#94a3b8", linestyle="--", label="guessing")
        axes.plot(np.maximum(false, low), np.maximum(true, low), color="#b45309", label="LiRA")
        axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1))
        axes.set(xlabel="share of false alarms", ylabel="share of members found")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)

    return draw


def histogram(inside: np.ndarray, outside: np.ndarray) -> Draw:
    """The scores of canaries that were in and of those that were not: what lies apart can be told apart."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        edges = np.histogram_bin_edges(np.concatenate([inside, outside]), 30).tolist()
        axes.hist(outside, edges, color="#64748b", alpha=0.7, label="canary was out")
        axes.hist(inside, edges, color="#b45309", alpha=0.7, label="canary was in")
        axes.set(xlabel="released mean at the canary's coordinate, all rounds", ylabel="canaries")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)

    return draw
