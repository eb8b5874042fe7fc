"""`hansa graph`: what flows between the parties of a job in one round, each in a colour of its own, as SVG or DOT.

    server     model ──────────────────────────────────► SecureSum ─► undo the stages ─► apply ─► next model
    worker 1          └► local training ─► Clip, Quantise ──┘  ┆
    helper                                        ┆┄┄┄┄┄┄┄┄► keys

All of it is read off the job as it binds: nothing runs, and no data is opened.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from hansa.app.folder import check_file
from hansa.app.jobs import read_settings
from hansa.app.terminal import emit, say, settings as terminal_settings, size
from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.pipeline import Stage, Step
from hansa.privacy.disclosure import who_sees_what
from hansa.privacy.threats import CENTRAL, declared
from hansa.runtimes.jobfile import load_job

SERVER = "server"
_SHOWN = 3  # workers; the last stands for all others
# Okabe and Ito's colours, which most eyes tell apart: https://jfly.uni-koeln.de/color/
_COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_INK, _LEFT, _PITCH, _WIDTH, _TOP = "#333333", 112, 182, 142, 54


@dataclass(frozen=True)
class Box:
    """Something that one party does: its place in time counts columns, from 0."""

    party: str
    column: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Arrow:
    """From box to box, by number; `keys` are not the contribution itself."""

    start: int
    end: int
    text: str = ""
    keys: bool = False


@dataclass
class Flow:
    """One round of a job."""

    name: str
    parties: list[str]
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    sees: dict[str, str] = field(default_factory=dict)

    def add(self, party: str, column: int, *lines: str) -> int:
        """A new box; its number."""
        self.boxes.append(Box(party, column, lines))
        return len(self.boxes) - 1

    @property
    def high(self) -> int:
        """Of all boxes, as the one with most lines needs it."""
        return 28 + 14 * max(len(box.lines) for box in self.boxes)

    @property
    def lane(self) -> int:
        """From party to party."""
        return self.high + 24

    def colour(self, party: str) -> str:
        """A party's own, while there are enough."""
        return _COLOURS[self.parties.index(party) % len(_COLOURS)]


def graph(job: Path, out: Path | None, pairs: Sequence[str], config: Path | None, population: int | None) -> None:
    """`hansa graph`.

    Args:
      job: a job file.
      out: a .svg or .dot file; None prints DOT.
      pairs, config: settings, as of every command on jobs.
      population: clients to bind for; None: as many as a round asks.

    Raises:
      ConfigError: another kind of file.
      JobError: the job has faults.
    """
    if out is not None and out.suffix not in (".svg", ".dot"):
        raise ConfigError(f"--out {out}: end its name with .svg or .dot.")
    check_file(out, "--out")
    loaded = load_job(job, read_settings(pairs, config))
    loaded.check(population)
    found = flow(loaded, population or max(1, round(loaded.who.expected(1 << 20))))
    if out is not None:
        out.write_text(svg(found) if out.suffix == ".svg" else dot(found), encoding="utf-8")
        emit("graph", out=str(out), parties=found.parties)
        say(f"picture written to {out}")
    elif terminal_settings.json:
        emit("graph", dot=dot(found), parties=found.parties)
    else:
        print(dot(found), end="")


def flow(job: Job, population: int) -> Flow:
    """What flows in one round of a job without faults."""
    bound, reducer = job.bind(population), job.pipeline.reducer
    asked = max(1, round(job.who.expected(population)))
    workers = [f"worker {at + 1}" for at in range(min(asked, _SHOWN))]
    if asked > _SHOWN:
        workers[-1] = f"worker {_SHOWN} … {asked}"
    helpers = list(reducer.helpers) if reducer is not None else []
    found = Flow(job.name, [SERVER, *workers, *helpers], sees=who_sees_what(job, population))
    parameters = sum(part.count for name, part in job.signal.parts.items() if name in ("value", "buffers"))

    down = [f"after {_names(job.down.stages)}"] if job.down.stages else []
    model = found.add(SERVER, 0, "model", f"{parameters:,} parameters", *down)
    coding = [stage for stage in job.pipeline.stages if not _of_server(stage)]
    kind = type(reducer).__name__ if reducer is not None else "Sum"
    alone = reducer is None or reducer.sees == "each"
    total = found.add(SERVER, 4, kind, "sees each contribution" if alone else "sees the sum alone")
    places = {name: found.add(name, 3, f"helps {kind},", "without data") for name in helpers}
    sent = size(bound.bits() / 8)
    training = "DP-SGD, local" if job.algorithm.work.dp is not None else "local training"
    for worker in workers:
        last = found.add(worker, 1, "own data", f"{training}: {type(job.algorithm).__name__}")
        found.arrows.append(Arrow(model, last))
        if coding:
            coded = found.add(worker, 2, *textwrap.wrap(_names(coding), 21))
            found.arrows.append(Arrow(last, coded))
            last = coded
        found.arrows.append(Arrow(last, total, sent if worker == workers[0] else ""))
        found.arrows += [Arrow(last, place, keys=True) for place in places.values()]
    found.arrows += [Arrow(place, total, keys=True) for place in places.values()]
    decoding = [stage for stage, step in zip(job.pipeline.stages, bound.steps, strict=True) if _decodes(step)]
    if decoding:
        decoded = found.add(SERVER, 5, *textwrap.wrap(f"decode: {_names(decoding[::-1])}", 21))
        found.arrows.append(Arrow(total, decoded))
        total = decoded
    applied = found.add(SERVER, 6, f"{type(job.algorithm).__name__}:", "next model")
    found.arrows += [Arrow(total, applied), Arrow(applied, model, "next round")]
    return found


def _decodes(step: Step) -> bool:
    kind = type(step)
    return kind.decode_total is not Step.decode_total or kind.decode_one is not Step.decode_one


def _names(stages: Sequence[Stage]) -> str:
    return ", ".join(type(stage).__name__ + " (noise)" * _of_server(stage) for stage in stages)


def _of_server(stage: Stage) -> bool:
    """Whether its noise is the server's."""
    return declared(stage)[:1] == CENTRAL[:1]


def dot(found: Flow) -> str:
    """For Graphviz, a cluster for each party."""
    lines = [f"digraph {_quoted(found.name)} {{", "  rankdir=LR; node [shape=box, style=filled, fontname=sans];"]
    for at, party in enumerate(found.parties):
        lines.append(f"  subgraph cluster_{at} {{ label={_quoted(party)}; color={_quoted(found.colour(party))};")
        for number, box in enumerate(found.boxes):
            if box.party == party:
                style = f"label={_quoted(chr(10).join(box.lines))}, fillcolor={_quoted(found.colour(party) + '40')}"
                lines.append(f"    b{number} [{style}];")
        lines.append("  }")
    for arrow in found.arrows:
        marks = [f"label={_quoted(arrow.text)}"] * bool(arrow.text) + ["style=dashed"] * arrow.keys
        marks += ["constraint=false"] * (found.boxes[arrow.end].column == 0)
        lines.append(f"  b{arrow.start} -> b{arrow.end}" + (f" [{', '.join(marks)}]" if marks else "") + ";")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def svg(found: Flow) -> str:
    """A lane for each party, and below them who sees what."""
    notes = [line for who, what in found.sees.items() for line in textwrap.wrap(f"{who}: {what}", 190)]
    if any(arrow.keys for arrow in found.arrows):
        notes.append("dashed: what the reducer hides contributions with, and no contribution itself")
    bottom = _TOP + found.lane * len(found.parties) + 24
    width, height = _LEFT + _PITCH * 7, bottom + 18 * len(notes) + 12
    drawn = [_text(width / 2, 24, found.name, "middle", bold=True)]
    for party in found.parties:
        y, colour = _middle(found, party), found.colour(party)
        lane = f'y="{y - found.lane // 2 + 4}" width="{width - 12}" height="{found.lane - 8}"'
        drawn.append(f'<rect x="6" {lane} rx="8" fill="{colour}" opacity="0.1"/>')
        drawn.append(_text(16, y + 4, party, bold=True))
    drawn += [_line(found, arrow) for arrow in found.arrows]
    for box in found.boxes:
        x, y, colour = *_place(found, box), found.colour(box.party)
        drawn.append(
            f'<rect x="{x}" y="{y - found.high // 2}" width="{_WIDTH}" height="{found.high}" rx="7" fill="white" '
            f'stroke="{colour}" stroke-width="2.5"/>'
        )
        first = y + 4 - 7 * (len(box.lines) - 1)
        drawn += [_text(x + _WIDTH / 2, first + 14 * at, line, "middle") for at, line in enumerate(box.lines)]
    drawn += [_text(16, bottom + 18 * at, note) for at, note in enumerate(notes)]
    head = f'<marker id="h" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">{_HEAD}'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="11.5" '
        f'font-family="system-ui, sans-serif"><defs>{head}</marker></defs>'
        f'<rect width="{width}" height="{height}" fill="white"/>{"".join(drawn)}</svg>\n'
    )


_HEAD = f'<path d="M0 0L8 4L0 8z" fill="{_INK}"/>'


def _place(found: Flow, box: Box) -> tuple[int, int]:
    """A box's left edge and its middle's height."""
    return _LEFT + _PITCH * box.column, _middle(found, box.party)


def _middle(found: Flow, party: str) -> int:
    return _TOP + found.lane * found.parties.index(party) + found.lane // 2


def _line(found: Flow, arrow: Arrow) -> str:
    """From the right edge of one box to the left edge of another; back to the beginning above all."""
    (x, y), (u, v) = (_place(found, found.boxes[at]) for at in (arrow.start, arrow.end))
    path, label = f"M{x + _WIDTH} {y}L{u} {v}", ((x + _WIDTH + u) / 2 - 8, (y + v) / 2 - 8)
    if u < x:
        path = f"M{x + _WIDTH / 2} {y - found.high // 2}V{_TOP - 8}H{u + _WIDTH / 2}V{v - found.high // 2}"
        label = (_LEFT + _PITCH * 3.5, _TOP - 14)
    dash = ' stroke-dasharray="5 4"' if arrow.keys else ""
    colour = found.colour(found.boxes[arrow.start].party)
    line = f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} marker-end="url(#h)"/>'
    return line + (_text(*label, arrow.text, "end") if arrow.text else "")


def _text(x: float, y: float, words: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{_INK}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
