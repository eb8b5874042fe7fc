"""LSTM and GRU step by step are PyTorch's own, and many clients of them are trained at once where that pays."""

import logging

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from tests.adapters import test_torch_cohort as cohorts, test_torch_replay as replays  # noqa: E402
from torch import nn  # noqa: E402

from hansa.adapters import torch as adapter  # noqa: E402
from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.adapters.torch_recurrent import StepByStep  # noqa: E402
from hansa.core.model import LocalWork  # noqa: E402

SETTINGS = {
    "one layer": {}, "three layers": {"num_layers": 3}, "both directions": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False}, "batch first": {"batch_first": True}, "dropout": {"num_layers": 2, "dropout": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_step_by_step_is_the_fused_operation(kind, settings):
    torch.manual_seed(0)
    layer, x = kind(3, 4, dtype=torch.float64, **settings), torch.rand(5, 2, 3, dtype=torch.float64)
    layer.train("dropout" not in settings)
    batch = 5 if settings.get("batch_first") else 2
    first = torch.rand(
        settings.get("num_layers", 1) * (1 + settings.get("bidirectional", 0)), batch, 4, dtype=torch.float64
    )
    for given in ((x,), (x, (first, first + 1) if kind is nn.LSTM else first)):
        wanted, last = layer(*given)
        with StepByStep():
            mine, mine_last = layer(*given)
        assert mine.shape == wanted.shape and torch.allclose(mine, wanted, rtol=1e-12)
        for one, other in zip(*((each if kind is nn.LSTM else (each,)) for each in (mine_last, last)), strict=True):
            assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-12)


def test_what_the_formulas_do_not_cover_is_left_to_pytorch():
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 4, dtype=torch.float64), torch.rand(5, 2, 3, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3])
    projected = nn.LSTM(3, 4, proj_size=2, dtype=torch.float64)
    with StepByStep():
        mine, projected_mine = layer(packed)[0].data, projected(x)[0]
    assert torch.equal(mine, layer(packed)[0].data) and torch.equal(projected_mine, projected(x)[0])


@pytest.mark.parametrize("work", [{}, {"momentum": 0.9}, {"optimiser": "adam", "lr": 0.01, "eps": 1e-3}])
@pytest.mark.parametrize("net", [replays.lstm, replays.gru])
def test_a_ragged_cohort_of_them_on_a_device_equals_the_plain_loop(net, work, monkeypatch, caplog):
    for name in ("chosen", "wanted"):
        monkeypatch.setattr(adapter, name, lambda asked: "cpu:0")
    monkeypatch.setattr(adapter, "recorder_on", lambda device: None)
    model = TorchModel(net, F.cross_entropy, dtype="float64")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        cohorts.same(
            model,
            cohorts.some_data((23, 24, 23), words=True),
            LocalWork(**{"lr": 0.05, "epochs": 1, "batch_size": 10, **work}),
        )
    assert not caplog.records, "none was trained alone"
