"""What differs where a model trains on a device: names, columns, labels, memory and PyTorch's settings.

"cpu:0" is the processor that goes the way of a device. Tests of CUDA itself run where there is a GPU.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from tests.adapters import test_torch_cohort as cohorts, test_torch_replay as replays  # noqa: E402
from tests.adapters.tape import TapeRecorder  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from hansa.adapters import torch as adapter, torch_device  # noqa: E402
from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.adapters.torch_cohort import Cohort  # noqa: E402
from hansa.adapters.torch_loss import ignored  # noqa: E402
from hansa.adapters.torch_nll import class_loss  # noqa: E402
from hansa.adapters.torch_trace import begin, results, trace  # noqa: E402
from hansa.core.data import Dataset  # noqa: E402
from hansa.core.errors import ConfigError, DataError  # noqa: E402
from hansa.core.model import LocalWork, RecordDP  # noqa: E402

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: nothing of this shows CUDA")
WORK = LocalWork(lr=0.05, epochs=1, batch_size=10)


@pytest.fixture
def device(monkeypatch):
    for name in ("chosen", "wanted"):
        monkeypatch.setattr(adapter, name, lambda asked: "cpu:0")
    monkeypatch.setattr(adapter, "recorder_on", lambda device: TapeRecorder())


@pytest.mark.parametrize("loop", ["plain", "replay", "cohort"])
@pytest.mark.parametrize("net", [replays.mlp, replays.convolutions, cohorts.Words])
def test_the_way_of_a_device_gives_the_bits_of_the_processor(net, loop, device, monkeypatch):
    data = cohorts.some_data((23, 24, 30), net is cohorts.Words)
    model = TorchModel(net, F.cross_entropy, loop=loop)
    there = cohorts.fits(model, data, WORK), [model.evaluate(model.init(0), one) for one in data]
    monkeypatch.setattr(adapter, "chosen", lambda asked: "cpu")
    model = replace(model)
    here = cohorts.fits(model, data, WORK), [model.evaluate(model.init(0), one) for one in data]
    for one, other in zip(there[0], here[0], strict=True):
        assert one.params == other.params and one.metrics == other.metrics
    assert there[1] == here[1]


def test_record_level_privacy_goes_the_way_of_a_device(device):
    work = WORK.with_(dp=RecordDP(noise_multiplier=1e-6, clip=1e6))
    fit = replays.fit(TorchModel(replays.mlp, F.cross_entropy), work)
    assert fit.steps == 4 and fit.params.first_not_finite() is None


def test_many_clients_at_once_is_the_default_on_a_device(device, monkeypatch):
    model = TorchModel(replays.mlp, F.cross_entropy)
    assert model.stacks and "; cohort; " in model.plan()
    monkeypatch.setattr(adapter, "wanted", lambda asked: "cpu")
    assert not model.stacks and "; replay; " in model.plan()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("optimiser", [{}, {"momentum": 0.9}, {"optimiser": "adam"}])
@pytest.mark.parametrize("net", [replays.mlp, replays.normed, cohorts.pooled, cohorts.Words])
def test_a_step_that_is_traced_elsewhere_makes_nothing_on_the_processor(net, optimiser, stacked):
    with torch.device("meta"):
        module, rows = net(), torch.zeros(10, 7, dtype=torch.int64) if net is cohorts.Words else torch.zeros(10, 12)
        batch = [rows, torch.zeros(10, dtype=torch.int64)]
    weights, buffers = (
        {n: one.detach() for n, one in all_} for all_ in (module.named_parameters(), module.named_buffers())
    )

    def call(tensors, inputs):
        return torch.func.functional_call(module, dict(tensors), tuple(inputs))

    loss, step = F.cross_entropy, call
    if stacked:
        weights, buffers = ({n: torch.stack([one] * 3) for n, one in group.items()} for group in (weights, buffers))
        batch, loss = [torch.stack([one] * 3) for one in batch], torch.vmap(F.cross_entropy)
        step = torch.vmap(call, (dict.fromkeys(weights | buffers, 0), [0]))
    work = LocalWork(lr=0.1, steps=1, **optimiser)
    state = begin(work, weights, [], {"correction": {}, "mask": {}}, buffers)
    graph = trace(step, state, work, loss, batch[:1], batch[1], True).graph
    made = [one for node in graph.nodes for one in (*node.args, *node.kwargs.values()) if isinstance(one, torch.device)]
    assert {one.type for one in made} <= {"meta"}
    values = [one for node in graph.nodes for one in tree_leaves(node.meta.get("val", ())) if torch.is_tensor(one)]
    assert len(values) > 20 and all(one.device.type == "meta" for one in values)
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    if found := class_loss(graph, holders, results(graph)):
        (unit,) = [line for line in found.before("%stored", "%column", str) if "aten::ones" in line]
        assert "meta" in unit, "what the loss begins with is made where its likelihoods are"
    assert (found is None) == stacked


# -- labels, which a GPU's kernels do not survive


def labelled(*labels):
    rng = np.random.default_rng(0)
    return Dataset(x=rng.normal(size=(len(labels), 12)), y=np.array(labels))


@pytest.mark.parametrize("loop", ["plain", "cohort"])
@pytest.mark.parametrize("wrong", [3, -1])
def test_a_label_that_is_no_class_is_found_before_a_device_sees_it(loop, wrong, device):
    model = TorchModel(replays.mlp, F.cross_entropy, loop=loop)
    bad, good = labelled(0, 1, 2, wrong), labelled(0, 1, 2, 2)
    with pytest.raises(DataError, match=f"column 'y' has the label {wrong}, and the model gives no such class"):
        cohorts.fits(model, [good, bad], WORK)
    with pytest.raises(DataError, match=f"the label {wrong}"):
        model.evaluate(model.init(0), bad)
    assert cohorts.fits(model, [good, good], WORK)[0].steps == 1


def test_labels_that_the_loss_leaves_out_are_no_fault(device):
    model = TorchModel(replays.mlp, F.cross_entropy, loop="plain")
    assert cohorts.fits(model, [labelled(0, 1, 2, -100)], WORK)[0].steps == 1
    assert ignored(F.cross_entropy) == -100
    assert ignored(((1.0, F.mse_loss), (0.5, cohorts.partial(F.nll_loss, ignore_index=7)))) == 7


def test_an_assertion_in_a_kernel_is_told_in_words():
    with (
        pytest.raises(DataError, match="beyond its range.*cannot use the GPU any more"),
        adapter._explained(None, ("x", "y")),
    ):
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronous")


# -- memory


def test_where_memory_is_short_clients_are_trained_in_halves(monkeypatch, caplog):
    asked, honest = [], Cohort._fit

    def short(self, kind, visits):
        asked.append(len(visits))
        if len(visits) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return honest(self, kind, visits)

    monkeypatch.setattr(Cohort, "_fit", short)
    model = TorchModel(replays.mlp, F.cross_entropy, loop="cohort")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        cohorts.same(model, cohorts.some_data((33,) * 6), WORK, 1e-5)
    assert asked == [6, 3, 3] and "6 clients are trained in halves" in caplog.text


def test_where_there_is_no_memory_for_three_clients_they_are_trained_alone(monkeypatch, caplog):
    def none(self, kind, visits):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Cohort, "_fit", none)
    model = TorchModel(replays.mlp, F.cross_entropy, loop="cohort")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        cohorts.same(model, cohorts.some_data((33,) * 4), WORK, 1e-5)
    assert "no memory for 2 clients at once" in caplog.text


def test_a_gpu_that_others_use_has_less_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    for free, room in ((1000, 500), (90, 90)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1000))
        assert torch_device.memory_bytes("cuda:1") == room


# -- names


@pytest.mark.parametrize(
    ("asked", "told", "found"),
    [
        (None, None, "cpu"),
        (None, "cpu", "cpu"),
        ("cpu", "cuda:1", "cpu"),
        (None, "cuda:1", "cuda:1"),
        ("cuda", "cuda:1", "cuda:1"),
        ("cuda", None, "cuda:0"),
        ("cuda", "cpu", "cuda:0"),
        (None, "cuda", "cuda:0"),
        ("cuda:0", "cuda:1", "cuda:0"),
    ],
)
def test_the_device_comes_from_the_model_and_the_process(asked, told, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    if told is None:
        monkeypatch.delenv("HANSA_DEVICE", raising=False)
    else:
        monkeypatch.setenv("HANSA_DEVICE", told)
    assert torch_device.chosen(asked) == found


@pytest.mark.parametrize("name", ["toaster", "mps", "cuda:", "cuda:-1", "cuda:one"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match=f"device='{name}': it is written as 'cpu', 'cuda' or 'cuda:0'"):
        torch_device.chosen(name)


@pytest.mark.parametrize(
    ("count", "built", "why"),
    [
        (0, None, "is not available: this PyTorch .* is built without CUDA; install a build that has it, or train"),
        (0, "12.8", "is not available: PyTorch .* sees no GPU here; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES"),
        (2, "12.8", "is not available: PyTorch sees 2 of them here, the last is 'cuda:1'"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_not_there_is_refused_with_the_reason(count, built, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", built)
    model = TorchModel(replays.mlp, F.cross_entropy, device="cuda:7")
    with pytest.raises(ConfigError, match=f"device='cuda:7' {why}"):
        replays.fit(model, WORK)
    assert model.plan() == "torch; cohort; cuda; threads=1", "it may be there where the work is done"


def test_float32_is_float32_on_a_device_and_settings_are_as_before(monkeypatch):
    torch.set_float32_matmul_precision("high")
    try:
        with torch_device._exact():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")


# -- a GPU


def wide():
    return nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 64, 2, padding=1), nn.Flatten(), nn.Linear(576, 3))


@gpu
@pytest.mark.parametrize("net", [replays.mlp, wide, replays.lstm, cohorts.Words])
def test_a_gpu_computes_in_float32(net):
    words = net in (replays.lstm, cohorts.Words)
    there, here = (TorchModel(net, F.cross_entropy, device=device) for device in ("cuda:0", "cpu"))
    work = LocalWork(lr=0.05, steps=5, batch_size=10)
    assert replays.apart(replays.fit(there, work, words).params, replays.fit(here, work, words).params) < 1e-5


@gpu
def test_a_wrong_label_leaves_the_gpu_usable():
    model = TorchModel(replays.mlp, F.cross_entropy, device="cuda:0")
    with pytest.raises(DataError, match="the label 3"):
        cohorts.fits(model, [labelled(0, 1, 2, 3)], WORK)
    assert cohorts.fits(model, [labelled(0, 1, 2, 2)], WORK)[0].steps == 1


@gpu
def test_every_gpus_random_state_is_seeded_inside_and_as_before_outside():
    for at in range(torch.cuda.device_count()):
        before = torch.cuda.get_rng_state(at)
        drawn = []
        for _ in range(2):
            with torch_device.seeded(7, f"cuda:{at}"):
                drawn.append(torch.rand(5, device=f"cuda:{at}").cpu())
        assert torch.equal(*drawn) and torch.equal(before, torch.cuda.get_rng_state(at))
