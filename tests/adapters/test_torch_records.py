"""DP-SGD: clipped sums against gradients taken one by one, noise, draws, and what is refused."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from hansa.adapters.torch import TorchModel
from hansa.adapters.torch_records import Protected, Records, noise_of_mean, rate, steps
from hansa.adapters.torch_records_replay import WORTH, padded
from hansa.algorithms import FedAvg
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, JobError
from hansa.core.job import Evaluation, Job
from hansa.core.model import LocalWork, RecordDP
from hansa.core.pipeline import Pipeline
from hansa.privacy.records import sensitivity
from hansa.stages.mean import UniformMean
from hansa.stages.sum import Sum


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x)).mean(1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.same(self.same(x).relu()))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[0][:, -1])


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {  # net, one record, by the short way
    "dense": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)), (6,), True),
    "few positions": (lambda: nn.Sequential(nn.Linear(9, 8), nn.Flatten(), nn.Linear(16, 3)), (2, 9), True),
    "many positions": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Flatten(), nn.Linear(60, 3)), (20, 2), True),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2, dilation=2), nn.Flatten(),
            nn.Linear(6, 3),
        ), (2, 6, 6), True,
    ),
    "words": (Words, (5,), True),
    "used twice": (Twice, (6,), False),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (6,), False),
    "recurrent": (Recurrent, (4, 3), False),
}  # fmt: skip


def batch(shape: tuple[int, ...], words: bool, count: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = (
        torch.randint(7, (count, *shape), generator=generator)
        if words
        else torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    )
    return x, torch.arange(count) % 3


def clipped(records: Records, x: torch.Tensor, y: torch.Tensor, clip: float, share: float = 1.0) -> list[torch.Tensor]:
    totals = [torch.ones_like(weight).detach() for weight in records._weights]
    records.add_clipped(totals, [x], y, clip, share)
    return [total - 1 for total in totals]


@pytest.mark.parametrize("clip", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("net", NETS)
def test_clipped_sums_are_those_of_gradients_taken_one_by_one(net: str, clip: float) -> None:
    make, shape, short = NETS[net]
    torch.manual_seed(1)
    module = make().double()
    x, y = batch(shape, net == "words")
    names, weights = zip(*module.named_parameters(), strict=True)
    records = Records(module, F.cross_entropy, names, weights)
    sums = clipped(records, x, y, clip)
    assert (records._ghosts is not None) == short
    wanted = [torch.zeros_like(weight) for weight in weights]
    for i in range(len(x)):
        grads = torch.autograd.grad(F.cross_entropy(module(x[i : i + 1]), y[i : i + 1]), weights)
        norm = torch.sqrt(sum((g.square().sum() for g in grads), torch.zeros(())))
        for total, g in zip(wanted, grads, strict=True):
            total += g * min(1.0, clip / float(norm))
    shares = clipped(records, x[:4], y[:4], clip, 0.25), clipped(records, x[:4], y[:4], clip)  # fewer, in the same room
    for got, want, quarter, four in zip(sums, wanted, *shares, strict=True):
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)
        assert torch.allclose(4 * quarter, four, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("net", [name for name, (_, _, short) in NETS.items() if short])
def test_replayed_sums_are_the_plain_ones_without_their_padding(net: str) -> None:
    make, shape, _ = NETS[net]
    torch.manual_seed(1)
    module = make()
    names, weights = zip(*module.named_parameters(), strict=True)
    native, plain = (Records(module, F.cross_entropy, names, weights, kind) for kind in (True, False))
    x, y = batch(shape, net == "words", 16)
    x = x if net == "words" else x.float()
    for count in [*[16] * WORTH, 13, 1]:
        sums = [torch.ones_like(weight).detach() for weight in weights]
        native.add_clipped(sums, [x], y, 0.1, 0.25, count=count)
        for got, want in zip(sums, clipped(plain, x[:count], y[:count], 0.1, 0.25), strict=True):
            assert torch.allclose(got - 1, want, rtol=1e-4, atol=1e-6)
    (replay,) = native._replays.values()
    assert len(replay._loops) == 1 and not replay._refused
    with torch.no_grad():
        weights[-1].add_(1.0)  # what is trained moves under the graph, which must see it
    got = [torch.ones_like(weight).detach() for weight in weights]
    native.add_clipped(got, [x], y, 0.1, 0.25, count=9)
    assert all(
        torch.allclose(one - 1, other, rtol=1e-4, atol=1e-6)
        for one, other in zip(got, clipped(plain, x[:9], y[:9], 0.1, 0.25), strict=True)
    )
    if net != "words":
        wild = x.clone()
        wild[2] = float("inf")  # the replay stands back, and the plain way leaves the record out
        got = [torch.ones_like(weight).detach() for weight in weights]
        native.add_clipped(got, [wild], y, 0.1, 0.25, count=9)
        assert all(torch.isfinite(each).all() for each in got) and not replay._refused


def test_rows_of_a_draw_are_padded_to_few_sizes() -> None:
    sizes = {len(padded(np.arange(count))) for count in range(200, 320)}
    assert len(sizes) <= 12
    for count in (1, 5, 31, 200, 1000):
        rows = padded(np.arange(3, 3 + count))
        assert count <= len(rows) <= max(count + 3, count * 17 // 16) and set(rows[count:]) <= {3}


def test_one_record_moves_the_sum_by_no_more_than_the_clip() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = batch((6,), False)
    names, weights = zip(*module.named_parameters(), strict=True)
    records = Records(module, F.cross_entropy, names, weights)
    wild = x.clone()
    wild[0] = torch.tensor([1e6, -1e6, 1e300, 0, float("inf"), float("nan")])
    with_it, without = clipped(records, wild, y, 0.5), clipped(records, wild[1:], y[1:], 0.5)
    moved = torch.sqrt(sum(((a - b).square().sum() for a, b in zip(with_it, without, strict=True)), torch.zeros(())))
    assert float(moved) <= 0.5 + 1e-9


# -- microbatches


def slotted(
    records: Records, x: torch.Tensor, y: torch.Tensor, clip: float, slots: list[int], expected: float
) -> torch.Tensor:
    totals = [torch.zeros_like(weight).detach() for weight in records._weights]
    records.add_microbatches(totals, [x], y, clip, 1.0, np.asarray(slots), expected)
    return torch.cat([total.flatten() for total in totals])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), net=st.sampled_from(["dense", "images", "recurrent"]), clip=st.floats(0.01, 5.0))
def test_one_record_moves_the_sum_of_microbatches_by_no_more_than_the_stated_bound(
    data: st.DataObject, net: str, clip: float
) -> None:
    make, shape, _ = NETS[net]
    torch.manual_seed(1)
    module = make().double()
    names, weights = zip(*module.named_parameters(), strict=True)
    records = Records(module, F.cross_entropy, names, weights)
    count, among = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    x, y = batch(shape, False, count)
    one, size = (
        data.draw(st.integers(0, count - 1)),
        data.draw(st.sampled_from([1e-3, 1.0, 1e6, float("inf"), float("nan")])),
    )
    x[one] *= size
    y[one] = data.draw(st.integers(0, 2))
    slots = data.draw(st.lists(st.integers(0, among - 1), min_size=count, max_size=count))
    others = [i for i in range(count) if i != one]
    bound = sensitivity(RecordDP(1.0, clip, microbatches=among))
    with_it = slotted(records, x, y, clip, slots, count / among)
    without = slotted(records, x[others], y[others], clip, [slots[i] for i in others], count / among)
    assert float((with_it - without).norm()) <= bound * (1 + 1e-9)


def test_the_bound_of_microbatches_is_reached_and_twice_that_of_records() -> None:
    module = nn.Linear(1, 1, bias=False).double()
    names, weights = zip(*module.named_parameters(), strict=True)
    records = Records(module, lambda out, y: (out * y).mean(), names, weights)  # a record's gradient is x·y
    x, y = torch.tensor([[5.0], [100.0]], dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    alone, both = slotted(records, x[:1], y[:1], 0.5, [0], 1.0), slotted(records, x, y, 0.5, [0, 0], 1.0)
    assert (float(alone), float(both)) == (0.5, -0.5)
    assert sensitivity(RecordDP(1.0, 0.5, microbatches=1)) == 1.0 and sensitivity(RecordDP(1.0, 0.5)) == 0.5


def test_microbatches_are_clipped_sums_over_their_expected_size() -> None:
    make, shape, _ = NETS["images"]
    module = make().double()
    x, y = batch(shape, False)
    names, weights = zip(*module.named_parameters(), strict=True)
    records = Records(module, F.cross_entropy, names, weights)
    slots = [2, 0, 2, 2, 0, 5, 5, 2, 0]  # uneven, and some are empty
    wanted = torch.zeros_like(slotted(records, x, y, 0.1, slots, 1.5))
    for slot in (0, 2, 5):
        rows = [i for i, at in enumerate(slots) if at == slot]
        grads = torch.autograd.grad(F.cross_entropy(module(x[rows]), y[rows], reduction="sum"), weights)
        mean = torch.cat([g.flatten() for g in grads]) / 1.5
        wanted += mean * min(1.0, 0.1 / float(mean.norm()))
    assert torch.allclose(slotted(records, x, y, 0.1, slots, 1.5), wanted, rtol=1e-9)
    plain = torch.cat([each.flatten() for each in clipped(records, x, y, 0.1)])
    assert torch.allclose(slotted(records, x, y, 0.1, list(range(9)), 1.0), plain, rtol=1e-6)  # a slot for each record


def test_a_step_with_microbatches_moves_by_the_mean_over_slots_and_its_noise() -> None:
    data = Dataset(x=np.random.default_rng(0).normal(size=(60, 6)).astype("float32"), y=np.arange(60) % 3)
    model = TorchModel(partial(nn.Linear, 6, 3), loss=F.cross_entropy)
    params, rng = model.init(0), partial(np.random.default_rng, 5)
    # Nothing is clipped and all records are drawn: every assignment to slots gives the mean gradient.
    quiet = LocalWork(lr=0.5, steps=1, batch_size=60, dp=RecordDP(1e-12, 1e6, microbatches=7))
    moved = model.fit(params, data, quiet, rng()).params
    exact = model.fit(params, data, quiet.with_(dp=None), rng()).params
    for name in params:
        np.testing.assert_allclose(moved[name], exact[name], atol=1e-5)
    loud = quiet.with_(dp=RecordDP(2.0, 3.0, microbatches=5))
    noise = noise_of_mean([torch.zeros(100_000)], loud, Protected())[0]
    assert float(noise.std()) == pytest.approx(2.0 * 2 * 3.0 / 5, rel=0.02)
    assert model.fit(params, data, loud, rng()).params != model.fit(params, data, loud, rng()).params


def test_slots_are_even_and_of_the_operating_system() -> None:
    counts = np.bincount(Protected().slots(70_000, 7), minlength=7)
    assert len(counts) == 7 and np.abs(counts - 10_000).max() < 6 * (10_000 * 6 / 7) ** 0.5
    same, other = (Protected(lambda count: bytes([7]) * count) for _ in range(2))
    assert (same.slots(50, 3) == other.slots(50, 3)).all() and same.seed() == other.seed() != same.seed()


def test_what_a_network_draws_is_not_of_the_job_s_seed_either() -> None:
    # Else one record more would shift the masks that all behind it have, beyond any bound of one record.
    data = Dataset(x=np.random.default_rng(0).normal(size=(64, 6)).astype("float32"), y=np.arange(64) % 3)
    model = TorchModel(lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 3)), loss=F.cross_entropy)
    work = LocalWork(lr=1.0, steps=1, batch_size=64, dp=RecordDP(1e-12, 1e6))  # all drawn, no noise to speak of
    params = model.init(0)
    first, second = (model.fit(params, data, work, np.random.default_rng(5)).params for _ in range(2))
    assert max(float(np.abs(first[name] - second[name]).max()) for name in params) > 1e-4


def test_noise_has_its_standard_deviation_and_draws_their_rate() -> None:
    work = LocalWork(lr=1.0, epochs=1, batch_size=20, dp=RecordDP(noise_multiplier=2.0, clip=3.0))
    protected = Protected()
    noise = noise_of_mean([torch.zeros(100_000), torch.zeros(7, 3)], work, protected)
    assert float(noise[0].std()) == pytest.approx(2.0 * 3.0 / 20, rel=0.02)
    assert abs(float(noise[0].mean())) < 5 * 0.3 / 100_000**0.5 and noise[1].shape == (7, 3)
    ranks = noise[0].sort().values / 0.3
    expected = torch.distributions.Normal(0.0, 1.0).cdf(ranks)
    assert (
        float((expected - torch.linspace(0, 1, len(ranks))).abs().max()) < 1.95 / len(ranks) ** 0.5
    )  # Kolmogorov, 1e-3
    counts = [len(protected.chosen(1000, rate(work, 1000))) for _ in range(500)]
    assert np.mean(counts) == pytest.approx(20, abs=4 * (19.6 / 500) ** 0.5) and np.std(counts) == pytest.approx(
        4.4, rel=0.2
    )
    assert rate(work, 5) == 1.0 and steps(work, 90) == 5 and steps(work.with_(epochs=None, steps=7), 90) == 7


def test_draws_and_noise_never_come_from_the_seed_of_the_job() -> None:
    same, other = (Protected(lambda count: bytes([7]) * count) for _ in range(2))
    assert torch.equal(same.normals(9), other.normals(9))  # the key decides, and is the operating system's
    data = Dataset(x=np.random.default_rng(0).normal(size=(64, 6)).astype("float32"), y=np.arange(64) % 3)
    model = TorchModel(partial(nn.Linear, 6, 3), loss=F.cross_entropy)
    work = LocalWork(lr=0.1, epochs=2, batch_size=16, dp=RecordDP(1.0, 1.0))
    params = model.init(0)
    first, second = (model.fit(params, data, work, np.random.default_rng(5)) for _ in range(2))
    assert first.params != second.params
    assert first.steps == 8 and not first.metrics
    quiet = work.with_(dp=RecordDP(1e-9, 1e9), optimiser="adam", proximal=0.1, momentum=0.0)
    assert model.fit(params, data, quiet, np.random.default_rng(5)).params.shapes == params.shapes


def test_what_mixes_records_is_refused() -> None:
    data = Dataset(x=np.ones((8, 6), "float32"), y=np.arange(8) % 3)
    work = LocalWork(lr=0.1, epochs=1, batch_size=4, dp=RecordDP(1.0, 1.0))
    mixed = TorchModel(lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), loss=F.cross_entropy)
    with pytest.raises(ConfigError, match=r"'1' is a batch norm, which mixes records.*group norm"):
        mixed.fit(mixed.init(0), data, work, np.random.default_rng(0))
    summed = TorchModel(partial(nn.Linear, 6, 3), loss=partial(F.cross_entropy, reduction="sum"))
    with pytest.raises(ConfigError, match="needs a loss that is a mean over records"):
        summed.fit(summed.init(0), data, work.with_(batch_size=8), np.random.default_rng(0))
    for bad in ({"noise_multiplier": 0.0, "clip": 1.0}, {"noise_multiplier": 1.0, "clip": float("inf")}):
        with pytest.raises(ConfigError, match="record-level privacy needs one above 0"):
            RecordDP(**bad)
    with pytest.raises(ConfigError, match="microbatches=0: at least 1"):
        RecordDP(1.0, 1.0, microbatches=0)
    with pytest.raises(ConfigError, match="microbatches=5 > batch_size=4: lower it"):
        LocalWork(lr=0.1, epochs=1, batch_size=4, dp=RecordDP(1.0, 1.0, microbatches=5))
    with pytest.raises(ConfigError, match="give a batch_size"):
        LocalWork(lr=0.1, epochs=1, dp=RecordDP(1.0, 1.0))


def test_a_job_refuses_models_that_cannot_and_metrics_that_would_leak() -> None:
    from hansa.testing.models import Line

    work = LocalWork(lr=0.1, epochs=1, batch_size=4, dp=RecordDP(1.0, 1.0))
    job = partial(Job, algorithm=FedAvg(work), pipeline=Pipeline([UniformMean()], Sum()), cohort=2)
    with pytest.raises(JobError, match="cannot clip single records: use TorchModel"):
        job(model=Line()).check()
    torch_model = TorchModel(partial(nn.Linear, 6, 3), loss=F.cross_entropy)
    job(model=torch_model).check()
    with pytest.raises(JobError, match=re.escape("evaluation on workers releases exact metrics of a private job")):
        job(model=torch_model, evaluation=Evaluation(workers=2)).check()
