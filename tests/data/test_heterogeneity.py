import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from hansa.core.errors import DataError
from hansa.data import Dataset, NaturalId, heterogeneity, partition

COUNTS = arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(1, 50))


def test_measures_are_those_worked_out_by_hand():
    counts = np.array([[4, 0], [0, 4], [2, 2]])  # the population is half and half
    assert heterogeneity.frequencies(counts).tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    assert heterogeneity.entropy(counts).tolist() == [0, 0, 1]
    assert heterogeneity.emd(counts).tolist() == [1, 1, 0]
    # H(3/4, 1/4) - (0 + 1) / 2 = 0.811278 - 0.5
    assert heterogeneity.jensen_shannon(counts) == pytest.approx([0.311278, 0.311278, 0], abs=1e-6)


@given(COUNTS)
def test_measures_stay_within_their_bounds(counts):
    classes = counts.shape[1]
    assert ((heterogeneity.entropy(counts) >= 0) & (heterogeneity.entropy(counts) <= np.log2(classes) + 1e-9)).all()
    assert ((heterogeneity.emd(counts) >= 0) & (heterogeneity.emd(counts) <= 2)).all()
    assert ((heterogeneity.jensen_shannon(counts) >= 0) & (heterogeneity.jensen_shannon(counts) <= 1)).all()


@given(COUNTS, st.randoms())
def test_measures_do_not_depend_on_the_order_of_labels(counts, random):
    order = list(range(counts.shape[1]))
    random.shuffle(order)
    for measure in (heterogeneity.entropy, heterogeneity.emd, heterogeneity.jensen_shannon):
        assert measure(counts[:, order]) == pytest.approx(measure(counts), abs=1e-9)


def test_a_client_without_examples_has_no_measure():
    counts = np.array([[0, 0], [3, 1]])
    for measure in (heterogeneity.entropy, heterogeneity.emd, heterogeneity.jensen_shannon):
        assert np.isnan(measure(counts)).tolist() == [True, False]


def test_a_summary_is_one_line():
    dataset = Dataset(y=[0, 1, 0, 0], id=["a", "a", "b", "b"])
    summary = heterogeneity.summary(partition(dataset, NaturalId("id")))
    assert (summary.clients, summary.labels, summary.entropy, summary.emd) == (2, 1.5, 0.5, 0.5)
    assert str(summary).startswith("2 clients of 2 to 2 examples (median 2); on average 1.5 labels, entropy 0.50 bits")


@pytest.mark.parametrize("counts", [np.zeros((2, 2)), np.ones(3), -np.ones((2, 2))])
def test_what_is_not_a_table_of_counts_is_refused(counts):
    with pytest.raises(DataError, match=r"must be \(clients, labels\)"):
        heterogeneity.entropy(counts)
