"""The PyTorch adapter: the reference's numbers, purity, and what modules and losses of all kinds need."""

import functools
import os
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import hansa  # noqa: E402
from hansa.adapters.numpy import LinearModel, MLPModel  # noqa: E402
from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.core.data import Dataset  # noqa: E402
from hansa.core.errors import ConfigError, DataError, TensorMismatch  # noqa: E402
from hansa.core.job import canonical  # noqa: E402
from hansa.core.model import LocalWork, Role, value  # noqa: E402
from hansa.core.tensors import Tensors  # noqa: E402
from hansa.runtimes.forms import rebuild  # noqa: E402

WORK = LocalWork(lr=0.1, epochs=2, batch_size=10)


def mlp():
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def dropout():
    return nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def normed():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, 12)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)))


class Counting(nn.Module):
    """Keeps a buffer that is not in state_dict, and uses it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x, mask):
        return self.layer(x * mask)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        h = torch.relu(self.trunk(x))
        return self.one(h), self.two(h)


class HalfFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(12, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


def unused():
    module = mlp()
    module.spare = nn.Parameter(torch.ones(2))
    module.forward = lambda x: module[2](module[1](module[0](x)))
    return module


def half():
    return mlp().to(torch.bfloat16)


def line():
    return nn.Linear(12, 1)


def class_loss(outputs, targets):
    return F.cross_entropy(outputs[0], targets[0])


def value_loss(outputs, targets):
    return F.mse_loss(outputs[1][:, 0], targets[1])


def top_two(outputs, targets):
    return (outputs.topk(2, dim=1).indices == targets[:, None]).any(1).double()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 53)
    return Dataset(x=rng.normal(size=(53, 12)) + np.eye(3, 12)[y], y=y)


def fit(model, data, work=WORK, seed=1, params=None):
    return model.fit(model.init(0) if params is None else params, data, work, np.random.default_rng(seed))


# -- the reference


TERMS = [
    "plain",
    "momentum",
    "adam",
    "weight_decay",
    "proximal",
    "correction",
    "mask",
    "all",
    "steps",
    "whole",
    "fixed order",
]


def work_of(term, params):
    some = params * 0.5
    mask = params.map(lambda a: (a > 0).astype(a.dtype))
    more = {
        "plain": {},
        "momentum": {"momentum": 0.9},
        "adam": {"optimiser": "adam", "betas": (0.8, 0.99)},
        "weight_decay": {"weight_decay": 0.1},
        "proximal": {"proximal": 0.5},
        "correction": {"correction": some},
        "mask": {"mask": mask},
        "all": {"momentum": 0.5, "weight_decay": 0.1, "proximal": 0.5, "correction": some, "mask": mask},
        "steps": {"epochs": None, "steps": 17},
        "whole": {"batch_size": None},
        "fixed order": {"shuffle": False},
    }[term]
    return LocalWork(**{"lr": 0.05, "epochs": 3, "batch_size": 10, **more})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("term", TERMS)
def test_torch_equals_the_numpy_reference(data, term, dtype):
    reference, model = MLPModel((12, 8, 3), dtype=dtype), TorchModel(mlp, F.cross_entropy, dtype=dtype)
    params = reference.init(0)
    work = work_of(term, params)
    expected, found = fit(reference, data, work, params=params), fit(model, data, work, params=params)
    assert found.steps == expected.steps and found.params.shapes == expected.params.shapes
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    for name in params:
        np.testing.assert_allclose(found.params[name], expected.params[name], atol=tolerance, rtol=0)
    assert value(found.metrics) == pytest.approx(value(expected.metrics), abs=1e-5)
    ours, theirs = (value(m.evaluate(found.params, data)) for m in (model, reference))
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_linear_model_equals_the_reference(data):
    data = Dataset(x=data["x"], y=data["x"][:, :1] * 2)
    reference, model = LinearModel(12, dtype="float64"), TorchModel(line, F.mse_loss, dtype="float64")
    start = reference.init(0)
    expected, found = (fit(m, data, params=start) for m in (reference, model))
    for name in start:
        np.testing.assert_allclose(found.params[name], expected.params[name], atol=1e-10)
    assert model.metrics == {"loss": float("inf")}
    assert value(found.metrics) == pytest.approx(value(expected.metrics))


# -- purity


def test_init_depends_on_the_seed_alone():
    model = TorchModel(mlp, F.cross_entropy)
    torch.manual_seed(5)
    one = model.init(3)
    torch.manual_seed(6)
    assert model.init(3) == one and model.init(4) != one


@pytest.mark.parametrize("net", [mlp, dropout, normed, Counting])
def test_fit_is_pure_whatever_was_fitted_in_between(data, net):
    model = TorchModel(net, F.cross_entropy)
    start = model.init(0)
    before = start.map(np.array)
    one = fit(model, data, LocalWork(lr=0.1, epochs=1, batch_size=10, momentum=0.9), params=start)
    fit(model, data, LocalWork(lr=0.1, epochs=1, batch_size=7), seed=2)
    model.evaluate(one.params, data)
    two = fit(model, data, LocalWork(lr=0.1, epochs=1, batch_size=10, momentum=0.9), params=start)
    assert start == before and one.params == two.params and one.metrics == two.metrics


def test_dropout_draws_from_the_rng_given(data):
    model = TorchModel(dropout, F.cross_entropy)
    work = LocalWork(lr=0.1, epochs=1, shuffle=False)
    assert fit(model, data, work, seed=1).params != fit(model, data, work, seed=2).params


def test_global_random_state_and_threads_are_as_before(data):
    model = TorchModel(dropout, F.cross_entropy, threads=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state = torch.random.get_rng_state()
        fit(model, data)
        model.evaluate(model.init(0), data)
        assert torch.get_num_threads() == 2 and torch.equal(torch.random.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


def test_threads_of_the_process_do_not_disturb_each_other(data):
    model = TorchModel(dropout, F.cross_entropy)
    start = model.init(0)
    alone = [fit(model, data, seed=seed, params=start).params for seed in range(4)]
    found = {}
    threads = [
        threading.Thread(target=lambda s=seed: found.update({s: fit(model, data, seed=s, params=start).params}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == alone


def test_arrays_that_may_not_be_written_are_read(data):
    model = TorchModel(mlp, F.cross_entropy)
    start = model.init(0)
    for name in start:
        start[name].flags.writeable = False
    x = data["x"].copy()
    x.flags.writeable = False
    assert fit(model, Dataset(x=x, y=data["y"]), params=start).params == fit(model, data, params=start).params


# -- tensors and roles


def test_roles_follow_the_kind_of_tensor():
    model = TorchModel(normed, F.cross_entropy)
    assert model.roles() == {
        "1.running_mean": Role.BUFFER,
        "1.running_var": Role.BUFFER,
        "1.num_batches_tracked": Role.FROZEN,
    }
    assert set(model.shapes()) == set(normed().state_dict())


def test_patterns_make_tensors_private_or_frozen():
    model = TorchModel(mlp, F.cross_entropy, private=("2.*",), frozen=("0.bias",))
    assert model.roles() == {"0.bias": Role.FROZEN, "2.bias": Role.PRIVATE, "2.weight": Role.PRIVATE}
    assert TorchModel(HalfFrozen, F.cross_entropy).roles() == {"body.bias": Role.FROZEN, "body.weight": Role.FROZEN}


def test_frozen_tensors_do_not_move_and_private_ones_do(data):
    model = TorchModel(mlp, F.cross_entropy, private=("2.*",), frozen=("0.*",))
    start = model.init(0)
    after = fit(model, data, params=start).params
    assert [name for name in start if (after[name] != start[name]).any()] == ["2.bias", "2.weight"]


def test_private_tensors_are_not_pulled_to_the_start(data):
    kept, sent = (TorchModel(mlp, F.cross_entropy, frozen=("0.*",), **more) for more in ({"private": ("2.*",)}, {}))
    pulled = LocalWork(lr=0.1, epochs=2, batch_size=10, proximal=5.0)
    assert fit(kept, data, pulled).params == fit(kept, data).params
    assert fit(sent, data, pulled).params != fit(sent, data).params


def test_tied_parameters_count_once(data):
    model = TorchModel(Tied, F.cross_entropy)
    assert set(model.shapes()) == {"inner.bias", "inner.weight", "outer.bias"}
    after = fit(model, data).params
    module = model.finish(after)
    assert module.inner.weight is module.outer.weight
    np.testing.assert_array_equal(module.inner.weight.detach().numpy(), after["inner.weight"])


def test_a_parameter_without_gradient_follows_the_other_terms(data):
    model = TorchModel(unused, F.cross_entropy)
    assert fit(model, data).params["spare"].tolist() == [1.0, 1.0]
    decayed = fit(model, data, LocalWork(lr=0.1, steps=1, weight_decay=0.5)).params
    assert decayed["spare"].tolist() == pytest.approx([0.95, 0.95])


def test_batch_norm_with_frozen_statistics_uses_them(data):
    model = TorchModel(normed, F.cross_entropy, frozen=("*.running_*",))
    start = model.init(0)
    after = fit(model, data, params=start).params
    assert (after["1.running_mean"] == start["1.running_mean"]).all()
    # A single example is no trouble then.
    assert fit(model, data.take([0]), LocalWork(lr=0.1, steps=2)).steps == 2


def test_a_last_batch_of_one_makes_no_step_with_batch_norm(data):
    model = TorchModel(normed, F.cross_entropy)
    found = fit(model, data.take(range(21)), LocalWork(lr=0.1, epochs=2, batch_size=10))
    assert found.steps == 4 and found.metrics["loss"][1] == 40
    with pytest.raises(DataError, match="batch norm cannot train on single examples"):
        fit(model, data.take([0]))


def test_float32_stays_float32_and_half_precision_is_refused_or_widened(data):
    assert {d for _, d in fit(TorchModel(mlp, F.cross_entropy), data).params.shapes.values()} == {"float32"}
    with pytest.raises(ConfigError, match="'0.weight' is bfloat16.*dtype='float32'"):
        TorchModel(half, F.cross_entropy).init(0)
    assert TorchModel(half, F.cross_entropy, dtype="float32").shapes()["0.weight"][1] == "float32"
    with pytest.raises(ConfigError, match="dtype='float16'"):
        TorchModel(mlp, F.cross_entropy, dtype="float16")


def mnist_2nn():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def mnist_cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(),
        nn.Linear(512, 10),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif("HANSA_DATA" not in os.environ, reason="needs HANSA_DATA with MNIST")
@pytest.mark.parametrize(("net", "examples"), [(mnist_2nn, 60_000), (mnist_cnn, 30_000)])
def test_bfloat16_learns_mnist_as_well_as_float32(net, examples):
    """McMahan's networks, 20 rounds; the convolutional one on half of the examples."""
    train, test = hansa.data.mnist(shape=(784,))
    train = train.take(np.random.default_rng(1).permutation(len(train))[:examples])
    clients = hansa.data.partition(train, hansa.data.IID(), clients=100, seed=1)
    reached = {}
    for precision in (None, "bf16"):
        job = hansa.Job(
            model=TorchModel(net, F.cross_entropy, precision=precision),
            algorithm=hansa.FedAvg(LocalWork(lr=0.2, epochs=1, batch_size=10)),
            pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
            cohort=10,
            rounds=20,
            evaluation=hansa.Evaluation(data=test, every=20),
        )
        reached[precision] = hansa.train(job, clients).rounds[-1].central["accuracy"]
    assert reached[None] > 0.94
    print(f"accuracy after 20 rounds: {reached[None]:.4f} in float32, {reached['bf16']:.4f} in bf16")
    assert reached["bf16"] > reached[None] - 0.003


def test_parameters_of_other_names_or_shapes_are_refused(data):
    model = TorchModel(mlp, F.cross_entropy)
    with pytest.raises(TensorMismatch, match="lacks \\['0.bias'"):
        model.evaluate(Tensors({"w": [1.0]}), data)
    with pytest.raises(TensorMismatch, match="'0.bias' has shape"):
        model.finish(model.init(0).updated({"0.bias": np.zeros(3, "float32")}))


# -- losses and metrics


def test_metrics_follow_the_loss():
    classes = {"loss": float("inf"), "accuracy": 1.0}
    smoothed = functools.partial(F.cross_entropy, label_smoothing=0.1)
    instances = (nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.NLLLoss())
    for loss in (F.cross_entropy, smoothed, nn.CrossEntropyLoss, F.binary_cross_entropy_with_logits, *instances):
        assert TorchModel(mlp, loss).metrics == classes
    assert TorchModel(mlp, F.mse_loss).metrics == {"loss": float("inf")}


def test_loss_instances_train_as_functions_do(data):
    found = [fit(TorchModel(mlp, loss), data).params for loss in (F.cross_entropy, nn.CrossEntropyLoss())]
    assert found[0] == found[1]
    with pytest.raises(ConfigError, match="functools.partial"):
        TorchModel(mlp, nn.CrossEntropyLoss(label_smoothing=0.1))


def test_binary_targets_have_an_accuracy(data):
    binary = Dataset(x=data["x"], y=(data["y"] > 0).astype(float)[:, None])
    model = TorchModel(line, F.binary_cross_entropy_with_logits)
    after = fit(model, binary, LocalWork(lr=0.5, epochs=20, batch_size=10)).params
    logits = data["x"] @ after["weight"].T.astype(float) + after["bias"]
    metrics = model.evaluate(after, binary)
    assert metrics["accuracy"] == (((logits > 0) == (binary["y"] > 0)).sum(), 53.0)
    assert value(metrics)["accuracy"] > 0.7


def test_measures_are_added_up_with_their_bounds(data):
    model = TorchModel(mlp, F.cross_entropy, measures={"top_two": (top_two, 1.0)})
    assert model.metrics["top_two"] == 1.0
    seen, metrics = fit(model, data).metrics, model.evaluate(model.init(0), data)
    assert metrics["top_two"][1] == 53.0 and metrics["accuracy"][0] <= metrics["top_two"][0] <= 53.0
    assert seen["top_two"][1] == 106.0
    with pytest.raises(ConfigError, match=r"measures\['loss'\]"):
        TorchModel(mlp, F.cross_entropy, measures={"loss": (top_two, 1.0)})


def test_outputs_and_targets_of_other_shapes_are_not_broadcast(data):
    with pytest.raises(DataError, match=r"outputs have shape \(10, 1\), targets \(10,\)"):
        fit(TorchModel(line, F.mse_loss), Dataset(x=data["x"], y=data["x"][:, 0]))


def test_two_losses_on_one_trunk_both_decrease(data):
    both = Dataset(x=data["x"], y=data["y"], z=data["x"][:, 3])
    model = TorchModel(TwoHeads, ((1.0, class_loss), (0.5, value_loss)), targets=("y", "z"))
    measured = {"class": TorchModel(TwoHeads, class_loss, targets=("y", "z")),
                "value": TorchModel(TwoHeads, value_loss, targets=("y", "z"))}  # fmt: skip
    start = model.init(0)
    after = fit(model, both, LocalWork(lr=0.1, epochs=20, batch_size=10), params=start)
    drops = {}
    for name, one in measured.items():
        drops[name] = [value(one.evaluate(params, both))["loss"] for params in (start, after.params)]
        assert drops[name][1] < 0.7 * drops[name][0]
    total = value(model.evaluate(after.params, both))["loss"]
    assert total == pytest.approx(drops["class"][1] + 0.5 * drops["value"][1], rel=1e-5)


def test_several_inputs_are_handed_over_in_order(data):
    mask = np.ones((53, 12))
    mask[:, 0] = 0
    model = TorchModel(Masked, F.cross_entropy, inputs=("x", "mask"))
    start = model.init(0)
    after = fit(model, Dataset(x=data["x"], mask=mask, y=data["y"]), params=start).params
    moved = (after["layer.weight"] != start["layer.weight"]).any(0)
    assert not moved[0] and moved[1:].all()
    with pytest.raises(DataError, match="no column 'mask'"):
        fit(model, data)


@pytest.mark.parametrize("loop", ["plain", "replay", "cohort"])
@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_named(loop, label):
    y = np.arange(20) % 3
    y[13] = label
    data = Dataset(x=np.ones((20, 12)), y=y)
    model = TorchModel(mlp, F.cross_entropy, loop=loop)
    with pytest.raises(DataError, match=f"column 'y' has the label {label}, and the model gives no such class"):
        fit(model, data)
    with pytest.raises(DataError, match=f"column 'y' has the label {label}"):
        model.evaluate(model.init(0), data)


def test_columns_of_text_are_refused(data):
    with pytest.raises(DataError, match="column 'x' is <U1"):
        fit(TorchModel(mlp, F.cross_entropy), Dataset(x=np.array([["a"]]), y=[0]))


# -- the job's view


def test_a_model_survives_its_canonical_form():
    model = TorchModel(mlp, F.cross_entropy, private=["2.*"], device="cpu", threads=2)
    again = rebuild(canonical(model))
    assert again == TorchModel(mlp, F.cross_entropy, private=("2.*",))  # device and threads are each worker's own
    assert hash(again) == hash(TorchModel(mlp, F.cross_entropy, private=("2.*",)))
    kept = rebuild(canonical(TorchModel(mlp, nn.CrossEntropyLoss())))
    assert kept.metrics["accuracy"] == 1.0 and kept.init(0) == model.init(0)


def test_finish_gives_the_module_in_eval_mode(data):
    model = TorchModel(normed, F.cross_entropy)
    params = fit(model, data).params
    module = model.finish(params)
    assert isinstance(module, nn.Sequential) and not module.training
    assert all((module.state_dict()[name].numpy() == params[name]).all() for name in params)
    fit(model, data, seed=9)  # training goes on in another module
    assert (module[0].weight.detach().numpy() == params["0.weight"]).all()


def test_the_device_comes_from_the_field_or_the_environment(data, monkeypatch):
    model = TorchModel(mlp, F.cross_entropy)
    monkeypatch.setenv("HANSA_DEVICE", "cuda:97")
    with pytest.raises(ConfigError, match="device='cuda:97' is not available"):
        fit(model, data)
    assert fit(TorchModel(mlp, F.cross_entropy, device="cpu"), data).steps == 12
    monkeypatch.setenv("HANSA_DEVICE", "toaster")
    with pytest.raises(ConfigError, match="'toaster': it is written as"):
        fit(model, data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("net", [mlp, dropout, normed])
def test_a_gpu_trains_like_the_cpu(data, net):
    there = TorchModel(net, F.cross_entropy, device="cuda:0")
    one, two = (fit(there, data).params for _ in range(2))
    assert one == two
    if net is not dropout:
        here = fit(TorchModel(net, F.cross_entropy), data).params
        for name in here:
            np.testing.assert_allclose(one[name], here[name], atol=1e-3)


def test_what_is_no_network_or_loss_is_named():
    with pytest.raises(ConfigError, match="a callable that returns a new nn.Module"):
        TorchModel(mlp(), F.cross_entropy)
    with pytest.raises(ConfigError, match="loss='cross_entropy'"):
        TorchModel(mlp, "cross_entropy")
    with pytest.raises(ConfigError, match="it must return an nn.Module"):
        TorchModel(dict, F.cross_entropy).init(0)
    with pytest.raises(ConfigError, match="private='head.*' fits no tensor"):
        TorchModel(mlp, F.cross_entropy, private=("head.*",)).roles()
    with pytest.raises(ConfigError, match="give a sequence of patterns"):
        TorchModel(mlp, F.cross_entropy, private="2.*")
    with pytest.raises(ConfigError, match="both private and frozen"):
        TorchModel(mlp, F.cross_entropy, private=("2.*",), frozen=("2.bias",)).roles()
    with pytest.raises(ConfigError, match="threads=0"):
        TorchModel(mlp, F.cross_entropy, threads=0)
