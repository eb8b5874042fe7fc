"""The flow of data of a session as a picture: one colour for each party, and grey for what nobody sees.

who gave what  ──►  what the parties computed on shares  ──►  who learnt what
"""

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.core.errors import ConfigError, MissingExtra
from hansa.mpc.report import Opened, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which most eyes tell apart: https://jfly.uni-koeln.de/color/
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
_SECRET, _INK = "#ECECEC", "#333333"
_LINE, _MOST = 0.36, 7  # inches a line of text takes; lines that a box has at most


def draw(report: Report, path: str | os.PathLike[str]) -> None:
    """Draws one party's report.

    Args:
      report: what it saw: seconds, rounds and bytes are its own.
      path: a .png, .svg or .pdf file.

    Raises:
      ConfigError: another kind of file.
      MissingExtra: matplotlib is not installed.
    """
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{path}: end its name with .png, .svg or .pdf.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a picture of a session", "matplotlib", "plot") from None
    colour = dict(zip(report.parties, _COLOURS * len(report.parties), strict=False))
    given, learnt = _boxes(report.shared), _boxes(report.revealed)
    middle = _operations(report)
    height = max(_height(given), _height(learnt), _LINE * (len(middle) + 2) + 1.3)
    figure = Figure(figsize=(11, height + 1.1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(-0.2, height + 0.9))
    axes.axis("off")
    for x, title in ((1.5, "given"), (5.5, "computed on shares"), (9.5, "revealed")):
        axes.text(x, height + 0.55, title, ha="center", va="center", fontsize=13, color=_INK)
    _centre(axes, report, middle, colour, height)
    _column(axes, given, 0.2, height, colour, inwards=True)
    _column(axes, learnt, 8.2, height, colour, inwards=False)
    figure.savefig(path, dpi=130)


def _boxes(opened: Sequence[Opened]) -> list[tuple[tuple[str, ...], list[str]]]:
    """For each set of parties its tensors, like ones counted together."""
    parties = dict.fromkeys(each.parties for each in opened)
    found = []
    for who in parties:
        shapes = sorted(each.shape for each in opened if each.parties == who)
        lines = [_shape(shape, len(list(same))) for shape, same in groupby(shapes)]
        if len(lines) > _MOST - 1:
            lines = [*lines[: _MOST - 2], f"and {len(lines) - _MOST + 2} other shapes"]
        found.append((who, lines))
    return found


def _shape(shape: tuple[int, ...], count: int) -> str:
    size = " × ".join(map(str, shape)) or "one number"
    size = f"{size} numbers" if len(shape) == 1 and shape[0] > 1 else "one number" if shape == (1,) else size
    return f"{count} times {size}" if count > 1 else size


def _height(boxes: list[tuple[tuple[str, ...], list[str]]]) -> float:
    return sum(_LINE * (len(lines) + 1) + 0.45 for _, lines in boxes)


def _operations(report: Report) -> list[tuple[str, ...]]:
    """The costliest operations, as rows."""
    lines = sorted(report.lines.items(), key=lambda pair: (-pair[1].sent_bytes, -pair[1].seconds))
    return [
        (name, f"{line.calls:,}", f"{line.rounds:,}", f"{line.sent_bytes / 1e6:.2f}", f"{line.seconds:.2f}")
        for name, line in lines[:_MOST]
    ]


def _box(axes: "Axes", x: float, y: float, width: float, height: float, **style: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = {"linewidth": 1.6, "boxstyle": "round,pad=0,rounding_size=0.12", **style}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **style))


def _centre(
    axes: "Axes", report: Report, rows: list[tuple[str, ...]], colour: dict[str, str], height: float
) -> None:  # fmt: skip
    """What was computed, and the parties that did."""
    size = _LINE * (len(rows) + 2) + 1.3
    top = (height + size) / 2
    _box(axes, 3.9, top - size, 3.2, size, facecolor=_SECRET, edgecolor=_INK)
    step = 3.0 / len(report.parties)
    for at, name in enumerate(report.parties):
        x = 4.0 + step * (at + 0.5)
        axes.plot(x, top - 0.35, "o", markersize=15, color=colour[name])
        sent = f"{report.sent_bytes[name] / 1e6:.2f} MB" if name in report.sent_bytes else "this report"
        axes.text(x, top - 0.68, name, ha="center", va="center", fontsize=9, color=_INK)
        axes.text(x, top - 0.9, sent, ha="center", va="center", fontsize=7.5, color="#777777")
    places = (4.02, 5.42, 5.93, 6.5, 7.0)
    for at, cells in enumerate([("", "calls", "rounds", "MB", "s"), *rows]):
        y = top - 1.35 - _LINE * at
        for column, (x, cell) in enumerate(zip(places, cells, strict=True)):
            style: dict[str, Any] = {"color": "#777777", "fontsize": 8} if at == 0 else {"color": _INK, "fontsize": 9}
            axes.text(x, y, cell, ha="right" if column else "left", va="center", **style)
    whole = f"{report.protocol}: {report.rounds:,} rounds, {report.seconds:.1f} s"
    axes.text(5.5, top - size + 0.22, whole, ha="center", va="center", fontsize=9, color=_INK)


def _column(
    axes: "Axes", boxes: list[tuple[tuple[str, ...], list[str]]], x: float, height: float, colour: dict[str, str],
    *, inwards: bool,
) -> None:  # fmt: skip
    """Boxes below each other, each with an arrow to or from the centre."""
    y = (height + _height(boxes)) / 2
    for who, lines in boxes:
        size = _LINE * (len(lines) + 1) + 0.2
        _box(axes, x, y - size, 2.6, size, facecolor="white", edgecolor=_INK)
        names = ["everybody"] if len(who) == len(colour) > 1 else list(who)
        for at, name in enumerate(who):  # a band with each one's colour
            axes.plot([x + 0.12, x + 0.12], [y - 0.1 - (size - 0.2) * at / len(who),
                      y - 0.1 - (size - 0.2) * (at + 1) / len(who)], linewidth=6, color=colour.get(name, _INK),
                      solid_capstyle="butt")  # fmt: skip
        for at, text in enumerate([", ".join(names), *lines]):
            weight = "bold" if at == 0 else "normal"
            axes.text(x + 0.3, y - 0.28 - _LINE * at, text, va="center", fontsize=9.5, color=_INK, weight=weight)
        start, end = (x + 2.65, 3.85) if inwards else (7.15, x - 0.05)
        arrow = {"arrowstyle": "-|>", "color": colour.get(who[0], _INK) if len(who) == 1 else _INK, "linewidth": 2.2}
        middle = height / 2 + (y - size / 2 - height / 2) * 0.3
        here, there = ((start, y - size / 2), (end, middle)) if inwards else ((start, middle), (end, y - size / 2))
        axes.annotate("", xy=there, xytext=here, arrowprops=arrow)
        y -= size + 0.25
