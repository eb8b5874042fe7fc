"""What the reproductions have in common: their command line, the table beside the published figures, the picture."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import hansa

Line = tuple[Sequence[float], Sequence[float]]  # the points' x and y


def arguments(about: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of every reproduction, described by the first line of its docstring."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, on data that is bundled or made up")
    parser.add_argument("--picture", metavar="PNG", help="where to draw the picture; it needs matplotlib")
    parser.add_argument("--processes", type=int, default=1, help="that train; the result is the same bits (default: 1)")
    return parser.parse_args(argv)


def runtime(processes: int) -> hansa.Local | hansa.Processes:
    """One process is this one."""
    return hansa.Processes(processes) if processes > 1 else hansa.Local()


def measured(history: hansa.History, metric: str = "accuracy") -> Line:
    """The rounds that were evaluated on the server's data, counted from 1, and what was measured."""
    seen = [record for record in history.rounds if record.central]
    return [record.round + 1 for record in seen], [record.central[metric] for record in seen]


def reached(line: Line, target: float) -> float | None:
    """The first x at which y is at least the target; None if it never is."""
    return next((x for x, y in zip(*line, strict=True) if y >= target), None)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under their heads, the first column to the left, None as a dash."""
    texts = [list(heads)] + [["–" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for cells in texts:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join([cells[0].ljust(len(first)), *others]))


def draw(path: str | None, panels: Mapping[str, Mapping[str, Line]], **settings: Any) -> None:
    """Panels side by side, saved as PNG: lines, and a cross where a line is but one point.

    Args:
      path: of the picture; None draws nothing.
      panels: title to lines by name.
      settings: for all panels, those of matplotlib's `Axes.set`.
    """
    if path is None:
        return
    import matplotlib.pyplot as plt

    figure, row = plt.subplots(
        1, len(panels), figsize=(1.5 + 3.4 * len(panels), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (title, lines) in zip(row[0], panels.items(), strict=True):
        for name, (x, y) in lines.items():
            axes.plot(x, y, "kx" if len(x) == 1 else "-", label=name, linewidth=1.2)
        axes.set(**settings)
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(linewidth=0.3)
        axes.label_outer()
    row[0][-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"drawn in {path}")
