import sys

import numpy as np
import pytest

from hansa.core.errors import DataError, MissingExtra
from hansa.data import Dataset, Dirichlet, NaturalId, partition, plot_comparison, plot_labels


def some(clients: int, classes: int = 10):
    labels = np.random.default_rng(0).integers(0, classes, 3000)
    return partition(Dataset(y=labels), Dirichlet(0.3), clients=clients)


@pytest.mark.parametrize("kind", ["bar", "heatmap"])
@pytest.mark.parametrize("order", ["id", "label", "size"])
@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (10, 10), (100, 10), (40, 62), (1500, 3)])
def test_a_picture_is_written_for_few_and_for_many_clients(tmp_path, kind, order, clients, classes):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "labels.png"
    figure = plot_labels(some(clients, classes), kind, path, order=order)
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    assert len(axes.get_xticks()) <= 30
    assert f"{clients} clients, 3,000 examples" in axes.get_title(loc="left")


def test_bars_are_as_high_as_the_counts():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    clients = some(10)
    bars = plot_labels(clients).axes[0].containers
    heights = np.array([[bar.get_height() for bar in label] for label in bars]).T
    assert np.array_equal(heights, clients.counts())


def test_few_clients_are_named_and_many_are_counted():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")

    def names(figure):
        return [text.get_text() for text in figure.axes[0].get_xticklabels()]

    wards = partition(Dataset(y=[0, 1, 1], ward=["b", "a", "c"]), NaturalId("ward"))
    assert names(plot_labels(wards)) == ["a", "b", "c"]
    assert names(plot_labels(some(100))) == ["00", "10", "20", "30", "40", "50", "60", "70", "80", "90"]
    assert names(plot_labels(some(100), order="size"))[:2] == ["0", "10"]


def test_a_missing_matplotlib_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"plot_labels needs matplotlib.*hansa\[plot\]"):
        plot_labels(some(3))


def test_an_unknown_kind_or_order_is_refused():
    with pytest.raises(DataError, match="kind='pie' must be"):
        plot_labels(some(3), kind="pie")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(DataError, match="order='luck' must be"):
        plot_labels(some(3), order="luck")


@pytest.mark.parametrize("kind", ["bar", "heatmap"])
@pytest.mark.parametrize("panels", [1, 2, 4, 5])
@pytest.mark.parametrize("classes", [10, 62])
def test_partitions_are_compared_in_one_scale(tmp_path, kind, panels, classes):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    given = {f"rule {number}": some(10 * (number + 1), classes) for number in range(panels)}
    figure = plot_comparison(given, kind, tmp_path / "both.svg")
    assert (tmp_path / "both.svg").read_text().count("<svg") == 1
    drawn = figure.axes[:panels]
    assert [axes.get_title(loc="left").strip() for axes in drawn] == list(given)
    assert len({axes.get_ylim() for axes in drawn}) == 1
    assert "entropy" in drawn[0].texts[0].get_text()
    if kind == "bar":
        assert drawn[0].get_ylim()[1] >= max(clients.sizes().max() for clients in given.values())


def test_compared_partitions_may_have_other_labels():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    wards = {
        "one": partition(Dataset(y=["b", "c"], ward=["x", "y"]), NaturalId("ward")),
        "other": partition(Dataset(y=["a", "a"], ward=["x", "y"]), NaturalId("ward")),
    }
    left, right = (
        np.array([[bar.get_height() for bar in label] for label in axes.containers]).T.tolist()
        for axes in plot_comparison(wards).axes[:2]
    )
    assert (left, right) == ([[0, 1, 0], [0, 0, 1]], [[1, 0, 0], [1, 0, 0]])
    with pytest.raises(DataError, match="nothing to compare"):
        plot_comparison({})
