"""Recorded steps give the bits of those that are not recorded; what cannot be recorded goes on without, and says why.

The recorder here is a tape (`tape.py` says what that does not show); tests of CUDA's graphs run where there is a GPU.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from tests.adapters import test_torch_cohort as cohorts, test_torch_replay as replays  # noqa: E402
from tests.adapters.tape import TapeRecorder  # noqa: E402

from hansa.adapters import torch as adapter, torch_capture  # noqa: E402
from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.adapters.torch_capture import KEPT, CudaRecorder, Room  # noqa: E402
from hansa.core.model import LocalWork  # noqa: E402

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: nothing of this shows CUDA")
WORK = replays.WORK


@pytest.fixture
def tape(monkeypatch):
    recorder = TapeRecorder()
    monkeypatch.setattr(adapter, "recorder_on", lambda device: recorder)
    return recorder


def equal(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.params == other.params and one.metrics == other.metrics and one.steps == other.steps


@pytest.mark.parametrize(
    ("net", "work"),
    [*((replays.mlp, work) for work in WORK.values()), (cohorts.pooled, {}), (cohorts.Words, {})],
    ids=[*WORK, "pooled", "words"],
)
def test_a_recorded_cohort_gives_the_bits_of_one_that_is_not(net, work, tape, monkeypatch):
    asked = LocalWork(**{"lr": 0.05, "batch_size": 10, "epochs": 1, **work})
    model, data = TorchModel(net, F.cross_entropy, loop="cohort"), cohorts.some_data((23, 24, 30), net is cohorts.Words)
    recorded = cohorts.fits(model, data, asked)
    assert tape.launched > tape.recorded > 0
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    equal(recorded, cohorts.fits(replace(model), data, asked))


@pytest.mark.parametrize(
    ("net", "work"),
    [*((replays.mlp, work) for work in WORK.values()), *((net, {}) for net in (replays.normed, replays.images))],
    ids=[*WORK, "normed", "images"],
)
def test_recorded_steps_of_one_client_give_the_bits_of_replayed_ones(net, work, tape, monkeypatch):
    asked = LocalWork(**{"lr": 0.05, "batch_size": 10, "epochs": 2, **work})
    model = TorchModel(net, F.cross_entropy, loop="replay")
    recorded = replays.fit(model, asked)
    assert tape.launched > tape.recorded > 0
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    equal([recorded], [replays.fit(replace(model), asked)])


def test_a_new_learning_rate_is_recorded_anew_and_old_ones_are_forgotten(tape):
    model, plain = (
        TorchModel(replays.mlp, F.cross_entropy, loop=loop, dtype="float64") for loop in ("replay", "plain")
    )
    for lr in [0.01 * (1 + i) for i in range(2 * KEPT)] * 2:
        work = LocalWork(lr=lr, epochs=1, batch_size=11)
        assert replays.apart(replays.fit(model, work).params, replays.fit(plain, work).params) < 1e-9
    assert tape.recorded == 4 * KEPT, "each rate had been forgotten when it came again"
    replays.fit(model, work)
    assert tape.recorded == 4 * KEPT


def test_all_shapes_share_the_memory_of_the_largest(tape):
    model, work = TorchModel(replays.mlp, F.cross_entropy, loop="replay"), LocalWork(lr=0.1, epochs=1, batch_size=8)
    small = replays.fit(model, work, examples=5)
    room = model._kept_on("cpu").replay.room
    size, recorded = len(room.memory), tape.recorded
    wide = replays.fit(model, work.with_(batch_size=64), examples=64)
    assert len(room.memory) > size
    largest = room.memory
    again = replays.fit(model, work, examples=5)
    assert tape.recorded == recorded + 2, "the wider batch, and the small one again in the larger memory"
    assert room.memory is largest
    equal([small, wide], [again, replays.fit(model, work.with_(batch_size=64), examples=64)])
    assert tape.recorded == recorded + 2


def test_room_gives_tensors_of_every_type_and_layout_that_do_not_overlap():
    given = [
        torch.rand(3, 5), torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), torch.tensor(3.0),
        torch.arange(7), torch.tensor([True, False]), torch.rand(3, 1).expand(3, 4), torch.empty(0, 2),
        torch.rand(4, 6).T,
    ]  # fmt: skip
    mine = Room(TapeRecorder()).like(given)
    for one, other in zip(mine, given, strict=True):
        one.copy_(other)
    for one, other in zip(mine, given, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
        assert one.stride() == torch.empty_like(other).stride()


class Refusing(TapeRecorder):
    """Cannot record, as where a step waits for a value."""

    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


class Wrong(TapeRecorder):
    """Records something else."""

    def record(self, work):
        return super().record(lambda: (work(), work()))


@pytest.mark.parametrize(
    ("recorder", "why"), [(Refusing(), "not permitted when stream is capturing"), (Wrong(), "gives something else")]
)
@pytest.mark.parametrize("loop", ["replay", "cohort"])
def test_what_cannot_be_recorded_is_launched_one_by_one_with_a_reason(loop, recorder, why, monkeypatch, caplog):
    monkeypatch.setattr(adapter, "recorder_on", lambda device: recorder)
    work, data = LocalWork(lr=0.1, epochs=2, batch_size=10), cohorts.some_data((33, 33, 33))
    model = TorchModel(replays.mlp, F.cross_entropy, loop=loop)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        found = cohorts.fits(model, data, work)
        said = len(caplog.records)
        cohorts.fits(model, data, work)
    assert "launched one by one" in caplog.text and why in caplog.text
    assert len(caplog.records) == said, "it is said once for each step"
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    equal(found, cohorts.fits(replace(model), data, work))


def test_dropout_draws_what_it_draws_without_a_recorder(tape, monkeypatch, caplog):
    model, work = (
        TorchModel(replays.convolutions, F.cross_entropy, loop="replay"),
        LocalWork(lr=0.1, epochs=2, batch_size=11),
    )
    with caplog.at_level(logging.INFO, "hansa.plan"):
        found = replays.fit(model, work)
    assert "it draws random numbers" in caplog.text and tape.recorded == 0
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    equal([found], [replays.fit(replace(model), work)])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recurrent_layers_draw_only_where_they_drop(dropout):
    graph = torch.fx.Graph()
    node = graph.call_function(torch.ops.aten._cudnn_rnn.default, (*[None] * 5, *[0] * 5, dropout))
    place = [argument.name for argument in node.target._schema.arguments].index("dropout")
    node.args = (*node.args[:place], dropout, *node.args[place + 1 :])
    assert torch_capture.draws(graph) == (dropout > 0)


def test_a_processor_has_nothing_to_record():
    assert torch_capture.recorder_on("cpu") is None


# -- a GPU


@gpu
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
@pytest.mark.parametrize("net", cohorts.NETS.values(), ids=cohorts.NETS)
def test_a_cohort_on_a_gpu_is_recorded_and_gives_what_the_plain_loop_gives(net, work, caplog):
    asked = LocalWork(**{"lr": 0.05, "batch_size": 10, "steps": 5, **work})
    model = TorchModel(net, F.cross_entropy, loop="cohort", device="cuda:0", dtype="float64")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        cohorts.same(model, cohorts.some_data(words=net is cohorts.Words), asked, 1e-9)
    assert "one by one" not in caplog.text


@gpu
@pytest.mark.parametrize("net", [replays.mlp, replays.images, replays.lstm, replays.gru, replays.convolutions])
def test_steps_on_a_gpu_give_the_same_bits_twice_recorded_or_not(net, monkeypatch):
    work, words = LocalWork(lr=0.05, epochs=2, batch_size=11), net in (replays.lstm, replays.gru)
    model = TorchModel(net, F.cross_entropy, loop="replay", device="cuda:0")
    found = [replays.fit(model, work, words) for _ in range(2)]
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    equal(found, [replays.fit(replace(model), work, words)] * 2)


@gpu
def test_a_recording_that_waits_for_a_value_is_refused_and_the_next_one_works():
    recorder, x = CudaRecorder("cuda:0"), torch.ones(4, device="cuda:0")
    with pytest.raises(RuntimeError):
        recorder.record(lambda: x.add_(float(x.sum())))
    torch.cuda.synchronize()
    x.fill_(1.0)
    launch = recorder.record(lambda: x.add_(1.0))
    x.fill_(1.0)
    launch()
    launch()
    np.testing.assert_array_equal(x.cpu(), 3.0)
