"""Pictures of how labels spread over clients, as bars or heat maps: of one partition, or of several side by side.

matplotlib is imported when a picture is drawn, without its global state, so this works on a server without a display.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hansa.core.errors import DataError, MissingExtra
from hansa.data.heterogeneity import frequencies, summary
from hansa.data.labels import labels
from hansa.data.population import Partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED_CLIENTS = 30  # more than this, and the axis shows a few ids only
NAMED_LABELS = 20  # more than this, and a colour bar takes the place of the legend
NAMED_IN_PANEL = 12  # of NAMED_CLIENTS, where pictures stand side by side
SHARE = "% of the client's examples"


def plot_labels(
    partition: Partition,
    kind: Literal["bar", "heatmap"] = "bar",
    path: str | Path | None = None,
    column: str = "y",
    order: Literal["id", "label", "size"] = "id",
    title: str | None = None,
) -> "Figure":
    """Draws which labels each client has.

    Args:
      partition: whose labels.
      kind: "bar" stacks how many examples of each label a client has; "heatmap" shows their share of the client's
        examples, so that small clients can be seen as well as large ones.
      path: where to write the picture, as PNG, SVG or PDF by its ending; None writes nothing.
      column: the labels.
      order: of the clients from left to right: by id, by their most frequent label, or by size, largest first.
      title: above the picture; None: how many clients and examples there are.

    Returns:
      The matplotlib Figure.

    Raises:
      MissingExtra: matplotlib is not installed.
      DataError: the column does not hold labels, or `kind` or `order` is unknown.
    """
    mpl, figure_type = _matplotlib("plot_labels", kind)
    names = [str(label) for label in labels(partition.dataset, column)[0]]
    counts = partition.counts(column)
    places = _order(counts, order)
    counts = counts[places]

    figure = figure_type(figsize=(min(max(6.0, 3.0 + 0.32 * len(counts)), 11.0), 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    if kind == "bar":
        _bars(axes, counts, names, mpl)
        _label_key(figure, axes, names, mpl)
    else:
        figure.colorbar(_heat_map(axes, counts, names), ax=axes, label=SHARE)
    _name_clients(axes, [partition.ids[place] for place in places], sorted_by_id=order == "id")
    axes.set_xlabel("client" if order == "id" else f"client, sorted by {order}")
    axes.set_title(title or f"{len(counts)} clients, {counts.sum():,} examples", loc="left", fontsize=11)
    if path is not None:
        figure.savefig(path)
    return figure


def plot_comparison(
    partitions: Mapping[str, Partition],
    kind: Literal["bar", "heatmap"] = "bar",
    path: str | Path | None = None,
    column: str = "y",
    order: Literal["id", "label", "size"] = "id",
) -> "Figure":
    """Draws several partitions side by side, in one scale, with how heterogeneous each is above it.

    Args:
      partitions: by the name to print; their labels need not be the same ones.
      kind, path, column, order: as for `plot_labels`.

    Returns:
      The matplotlib Figure, one panel for each partition.

    Raises:
      MissingExtra: matplotlib is not installed.
      DataError: there is no partition, the column does not hold labels, or `kind` or `order` is unknown.
    """
    mpl, figure_type = _matplotlib("plot_comparison", kind)
    if not partitions:
        raise DataError("there is nothing to compare: give at least one partition, as in {'IID': clients}.")
    every = np.unique(np.concatenate([labels(given.dataset, column)[0] for given in partitions.values()]))
    names = [str(label) for label in every]
    columns = 2 if len(partitions) == 4 else min(len(partitions), 3)
    rows = -(-len(partitions) // columns)
    figure = figure_type(figsize=(1.2 + 3.6 * columns, 0.4 + 3.2 * rows), dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    most = 0.0
    image: Any = None
    for number, (title, given) in enumerate(partitions.items()):
        axes = panels[number]
        counts = np.zeros((len(given), len(every)), dtype=np.int64)
        counts[:, np.searchsorted(every, labels(given.dataset, column)[0])] = given.counts(column)
        places = _order(counts, order)
        counts = counts[places]
        if kind == "bar":
            most = max(most, float(counts.sum(1).max()))
            _bars(axes, counts, names, mpl)
            axes.set_ylim(0, 1.04 * most)
        else:
            image = _heat_map(axes, counts, names, top=100.0, written=False)
        _name_clients(axes, [given.ids[place] for place in places], sorted_by_id=order == "id", most=NAMED_IN_PANEL)
        axes.set_xlabel("client" if order == "id" else f"client, sorted by {order}")
        if number % columns:
            axes.set_ylabel("")
        found = summary(given, column)
        measures = f"{found.labels:.1f} labels, entropy {found.entropy:.2f} bits, EMD {found.emd:.2f}"
        axes.set_title(f"{title}\n", loc="left", fontsize=11)
        axes.text(0, 1.02, measures, transform=axes.transAxes, fontsize=8.5, color="0.35")
    for axes in panels[len(partitions) :]:
        axes.remove()
    shown = list(panels[: len(partitions)])
    if kind == "bar":
        _label_key(figure, shown[min(len(shown), columns) - 1], names, mpl, beside=shown)
    else:
        figure.colorbar(image, ax=shown, label=SHARE)
    if path is not None:
        figure.savefig(path)
    return figure


def _matplotlib(function: str, kind: str) -> tuple[Any, type["Figure"]]:
    """Matplotlib and its Figure, once `kind` is known to be one that we draw."""
    if kind not in ("bar", "heatmap"):
        raise DataError(f"kind={kind!r} must be 'bar' or 'heatmap'.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(f"hansa.data.{function}", "matplotlib", "plot") from None
    return mpl, Figure


def _order(counts: np.ndarray, order: str) -> np.ndarray:
    if order == "id":
        return np.arange(len(counts))
    if order == "size":
        return np.argsort(-counts.sum(1), kind="stable")
    if order == "label":
        shares = np.nan_to_num(frequencies(counts))
        return np.lexsort((-shares.max(1), shares.argmax(1)))
    raise DataError(f"order={order!r} must be 'id', 'label' or 'size'.")


def _palette(names: list[str], mpl: Any) -> tuple[Any, list[Any]]:
    few = len(names) <= 10
    palette = mpl.colormaps["tab10" if few else "turbo"]
    return palette, [palette(label) if few else palette(label / (len(names) - 1)) for label in range(len(names))]


def _bars(axes: "Axes", counts: np.ndarray, names: list[str], mpl: Any) -> None:
    _, colours = _palette(names, mpl)
    edges = np.arange(len(counts) + 1) - 0.5
    tops = np.cumsum(counts, axis=1)
    for label, name in enumerate(names):
        base = tops[:, label] - counts[:, label]
        if len(counts) <= NAMED_CLIENTS:
            axes.bar(np.arange(len(counts)), counts[:, label], 0.85, bottom=base, color=colours[label], label=name)
        else:  # one shape a label, however many clients
            axes.stairs(tops[:, label], edges, baseline=base, fill=True, color=colours[label], label=name)
    axes.set_xlim(-0.5 - 0.005 * len(counts), len(counts) - 0.5 + 0.005 * len(counts))
    axes.set_ylim(0, 1.04 * counts.sum(1).max())
    axes.set_ylabel("examples")
    axes.spines[["top", "right"]].set_visible(False)


def _label_key(figure: "Figure", axes: "Axes", names: list[str], mpl: Any, beside: list["Axes"] | None = None) -> None:
    """Which colour is which label: a legend beside `axes`, or for many labels a colour bar beside all."""
    if len(names) <= NAMED_LABELS:
        handles, texts = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], texts[::-1], title="label", loc="center left", bbox_to_anchor=(1.0, 0.5),
                    frameon=False, fontsize=9)  # fmt: skip
    else:
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, len(names) - 1), _palette(names, mpl)[0])
        bar = figure.colorbar(scale, ax=beside or axes, label="label")
        shown = _spread(len(names), NAMED_LABELS)
        bar.set_ticks(shown, labels=[names[place] for place in shown])


def _heat_map(
    axes: "Axes", counts: np.ndarray, names: list[str], top: float | None = None, written: bool = True
) -> Any:
    """Draws the shares and gives the image; `top` is the share of the darkest blue, by default the largest."""
    shares = 100 * frequencies(counts).T
    image = axes.imshow(shares, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=top, origin="lower")
    if written and shares.size <= 150:
        for label, client in np.argwhere(shares >= 0.5):
            share = shares[label, client]
            axes.text(client, label, f"{share:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if share > 0.6 * np.nanmax(shares) else "black")  # fmt: skip
    shown = _spread(len(names), NAMED_LABELS)
    axes.set_yticks(shown, [names[place] for place in shown])
    axes.set_ylabel("label")
    axes.spines[:].set_visible(False)
    return image


def _name_clients(axes: "Axes", ids: list[str], sorted_by_id: bool, most: int = NAMED_CLIENTS) -> None:
    shown = _spread(len(ids), most)
    # Between a few ids in no order of their own nothing can be read off: a count of clients can.
    names = [ids[place] if sorted_by_id or len(shown) == len(ids) else str(place) for place in shown]
    long = max(map(len, names)) * len(names) > 60
    axes.set_xticks(shown, names, rotation=45 if long else 0, fontsize=9, rotation_mode="anchor",
                    ha="right" if long else "center", va="center" if long else "top")  # fmt: skip


def _spread(count: int, most: int) -> list[int]:
    """Every place below `count` if they are at most `most`, else about ten, in steps of 1, 2 or 5 powers of ten."""
    if count <= most:
        return list(range(count))
    power = 10 ** int(np.log10(count / 10))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 11 >= count)
    return list(range(0, count, step))
