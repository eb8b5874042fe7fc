"""Arrays of a device do what NumPy does, bit for bit, and stay there from training to the sum of a round."""

import gc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from tests.adapters import test_torch_replay as replays  # noqa: E402

import hansa  # noqa: E402
from hansa.adapters import torch as adapter, torch_array  # noqa: E402
from hansa.adapters.torch_array import OnDevice, sent  # noqa: E402
from hansa.core.data import Clients  # noqa: E402
from hansa.core.pipeline import Arrived, Closed  # noqa: E402
from hansa.core.tensors import Tensors  # noqa: E402
from hansa.stages.clip import Clip  # noqa: E402
from hansa.stages.sum import Sum  # noqa: E402

A = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
OPERATORS = {
    "add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b, "from the right": lambda a, b: b - a, "over": lambda a, b: b / a,
}  # fmt: skip
OTHERS = {
    "array": A[::-1].copy(), "row": A[0], "float64": A.astype(float), "number": 3.7, "integer": 3,
    "float32 number": np.float32(3.7), "float64 number": np.float64(3.7), "one": np.array([3.7], "float32"),
}  # fmt: skip


def there(array):
    return OnDevice(torch.from_numpy(array.copy()))


def equal(mine, wanted):
    wanted = np.asarray(wanted)
    assert mine.dtype == wanted.dtype and mine.shape == wanted.shape
    assert np.asarray(mine).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_operators_give_numpys_bits_and_types_and_stay(operator, other):
    mine = operator(there(A), other)
    assert isinstance(mine, OnDevice)
    equal(mine, operator(A, other))
    if isinstance(other, np.ndarray) and other.dtype == A.dtype:
        equal(operator(there(A), there(other)), operator(A, other))


def test_changes_in_place_are_seen_through_views_and_give_the_same_object():
    mine, wanted = there(A), A.copy()
    before, flat, plain = mine, mine.reshape(-1), wanted.reshape(-1)
    mine += 1.5
    mine /= 3
    mine[1] = 7.0
    flat[2:4] += flat[0:2]
    wanted += 1.5
    wanted /= 3
    wanted[1] = 7.0
    plain[2:4] += plain[0:2]
    assert mine is before
    equal(mine, wanted)
    mine[..., 0], wanted[..., 0] = 0, 0
    mine[np.array([0, 2])], wanted[np.array([0, 2])] = -1, -1
    equal(mine, wanted)


def test_whatever_else_numpy_does_is_done_with_a_copy():
    mine = there(A)
    for function in (
        np.sort, np.linalg.norm, np.sign, np.add.reduce, np.isfinite, np.cumsum, np.abs, np.sqrt,
        partial(np.clip, a_min=0, a_max=1), lambda a: np.stack([a, a]), lambda a: np.concatenate([a, A]),
        lambda a: np.where(A > 0, a, 0), lambda a: a > 0, lambda a: a.astype("int64"), lambda a: a @ A.T,
        lambda a: a.T, lambda a: a.max(), lambda a: a[A > 0], lambda a: a.astype("float64"),
        lambda a: a[1:, 2][None], lambda a: np.einsum("ij,ij", a, a),
    ):  # fmt: skip
        with np.errstate(all="ignore"):
            equal(function(mine), function(A))
    here = A.copy()
    here += mine
    equal(here, A + A)
    assert float(mine[0, 1]) == A[0, 1] and len(mine) == 3 and mine.size == 15 and mine.ndim == 2
    assert "OnDevice(float32[3, 5]" in repr(mine)
    with pytest.raises(AttributeError, match="has no 'sort': make a copy by np.array first"):
        mine.sort()
    equal(mine, A)


def test_trees_of_them_are_trees_like_any_other():
    trees = [Tensors({"b": array(A[0]), "w": array(A)}) for array in (there, np.array)]
    assert trees[0] == trees[1] and trees[0].norm() == trees[1].norm() and trees[0].shapes == trees[1].shapes
    for wrong in (np.nan, np.inf):
        broken = A.copy()
        broken[1, 2] = wrong
        assert Tensors({"w": there(broken)}).first_not_finite() == "w"
    assert Tensors({"w": there(A * np.float32(1e30))}).first_not_finite() is None, "only the look at it overflows"


def test_what_was_sent_is_known_as_long_as_it_lives(monkeypatch):
    array, like = A.copy(), torch.zeros(1)
    tensor = sent(array, like)
    assert torch_array.tensor_of(array, like) is tensor
    assert torch_array.tensor_of(A, like) is not tensor
    assert torch_array.tensor_of(array, torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    count = len(torch_array._SENT)
    del array
    gc.collect()
    assert len(torch_array._SENT) == count - 1
    wide = A.astype("float64") + 1e-12
    sent(wide, like)
    equal(there(A) - wide, A - wide)


# -- the sum


def summed(trees, discount=1.0):
    server = Sum().server([str(i) for i in range(len(trees))])
    next(server)
    for i, tree in enumerate(trees):
        server.send(Arrived(str(i), 0, tree, discount))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, tuple(str(i) for i in range(len(trees)))))
    return end.value.value


@pytest.mark.parametrize("discount", [1.0, 0.3])
def test_contributions_of_a_device_add_up_to_the_same_bits(discount, monkeypatch):
    monkeypatch.setattr("hansa.core.tensors.BLOCK", 4)
    trees = [{"w": A * i, "n": np.array([i]), "none": np.zeros((0, 3), "float32")} for i in range(1, 6)]
    wanted = summed([Tensors(tree) for tree in trees], discount)
    for which in (slice(None), slice(0, 2), slice(3, 5)):  # where some are here and some there
        mixed = list(trees)
        mixed[which] = [{**tree, "w": there(tree["w"]), "none": there(tree["none"])} for tree in trees[which]]
        total = summed([Tensors(tree) for tree in mixed], discount)
        assert total == wanted
        assert all(type(array) is np.ndarray for array in total.values()), "the total is here"


# -- a run


def clients():
    return Clients.of({str(i): replays.some_data(examples=20 + i) for i in range(4)})


def job(loop, *stages, **settings):
    return hansa.Job(
        model=hansa.TorchModel(replays.normed, F.cross_entropy, loop=loop, **settings),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1, batch_size=10)), rounds=2, cohort=4,
        pipeline=hansa.Pipeline([*stages, hansa.WeightedMean()], hansa.Sum()),
    )  # fmt: skip


@pytest.mark.parametrize("loop", ["plain", "replay", "cohort"])
def test_what_is_trained_on_a_device_leaves_it_as_the_total_of_a_round(loop, monkeypatch):
    here = hansa.train(job(loop), clients())
    copied, honest = [], OnDevice.__array__

    def counted(self, *given, **settings):
        copied.append(self.shape)
        return honest(self, *given, **settings)

    monkeypatch.setattr(OnDevice, "__array__", counted)
    monkeypatch.setattr(adapter, "chosen", lambda asked: "cpu:0")
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    away = hansa.train(job(loop), clients())
    floats = [shape for shape, dtype in job(loop).model.shapes().values() if dtype == "float32"]
    assert sorted(copied) == sorted(2 * floats), "each tensor once a round"
    assert away.checkpoint.state == here.checkpoint.state
    assert [record.train for record in away.rounds] == [record.train for record in here.rounds]


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": hansa.Scaffold(hansa.LocalWork(lr=0.1, epochs=1, batch_size=10))},
        {"pipeline": hansa.Pipeline([Clip(0.1), hansa.UniformMean()], hansa.Sum())},
        {"pipeline": hansa.Pipeline([hansa.UniformMean()], hansa.Median())},
    ],
    ids=["scaffold", "clip", "median"],
)
def test_algorithms_stages_and_reducers_take_arrays_of_a_device(change, monkeypatch):
    if "algorithm" in change:
        change = {**change, "pipeline": hansa.Pipeline([hansa.UniformMean()], hansa.Sum())}
    asked = replace(job("replay"), **change)
    asked = replace(asked, model=hansa.TorchModel(replays.mlp, F.cross_entropy, loop="replay"))
    here = hansa.train(asked, clients())
    monkeypatch.setattr(adapter, "chosen", lambda asked: "cpu:0")
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    away = hansa.train(replace(asked, model=replace(asked.model)), clients())
    assert away.checkpoint.state == here.checkpoint.state
