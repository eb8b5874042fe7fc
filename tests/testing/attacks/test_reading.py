"""What a curious server reads in a client's update; and does not read behind noise, or in a sum of many."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import hansa  # noqa: E402
from hansa.core.errors import ConfigError  # noqa: E402
from hansa.core.pipeline import Reducer, Stage  # noqa: E402
from hansa.core.tensors import Tensors  # noqa: E402
from hansa.testing.attacks import linear, words  # noqa: E402
from hansa.testing.attacks.eavesdrop import of_all, of_one  # noqa: E402
from hansa.testing.attacks.labels import labels_of, last_bias  # noqa: E402
from hansa.testing.attacks.matching import DLG, InvertingGradients, Matching, Recovered, Seen  # noqa: E402

DIGITS = hansa.data.digits()
ONE_STEP, THREE_EPOCHS = hansa.LocalWork(lr=0.1, steps=1), hansa.LocalWork(lr=0.1, epochs=3)
BLIND = float(((DIGITS["x"] - DIGITS["x"].mean(axis=0)) ** 2).mean())  # of who guesses the mean digit: 0.073


class Smooth(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.Sigmoid(), nn.Flatten(),
            nn.Linear(192, 10),
        )  # fmt: skip
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)


class Relus(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def job(
    net: type = Smooth, work: hansa.LocalWork = ONE_STEP, stages: tuple[Stage, ...] = (hansa.UniformMean(),),
    reducer: Reducer | None = None, cohort: int = 1,
) -> hansa.Job:  # fmt: skip
    return hansa.Job(
        model=hansa.TorchModel(net, loss=F.cross_entropy),
        algorithm=hansa.FedAvg(work),
        pipeline=hansa.Pipeline(stages, reducer or hansa.Sum()),
        cohort=cohort,
        seed=1,
    )


def attacked(job: hansa.Job, difference: Tensors, attack: Matching, examples: int = 1) -> Recovered:
    params, work = job.model.init(job.seed), job.algorithm.work
    what = {"model": job.model, "params": params, "difference": difference, "work": work}
    return attack.recover(Seen(**what, examples=examples, shape=(64,), classes=10))


# ── gradient matching


@pytest.mark.parametrize("net", [Smooth, Convolutions])
@pytest.mark.parametrize("work", [ONE_STEP, THREE_EPOCHS], ids=["a step", "three epochs"])
def test_dlg_reads_the_image_and_its_label_from_an_undefended_client(net: type, work: hansa.LocalWork) -> None:
    victim = DIGITS.take([11])
    undefended = job(net, work)
    found = attacked(undefended, of_one(undefended, victim, 1), DLG())
    assert found.iterations <= 3000
    assert found.errors(victim["x"]).max() < 1e-3 and found.y.tolist() == victim["y"].tolist()


@pytest.mark.slow
def test_dlg_reads_a_batch() -> None:
    victims = DIGITS.take([10, 25, 33])
    found = attacked(job(), of_one(job(), victims, 1), DLG(), examples=3)
    assert found.errors(victims["x"]).max() < 1e-3 and sorted(found.y) == sorted(victims["y"])


@pytest.mark.parametrize("stages", [[], [hansa.Clip(0.01)]], ids=["plain", "clipped"])
def test_inverting_gradients_reads_through_relus_and_clipping(stages: list[Stage]) -> None:
    victim = DIGITS.take([11])
    undefended = job(Relus, stages=(*stages, hansa.UniformMean()))
    found = attacked(undefended, of_one(undefended, victim, 1), InvertingGradients(iterations=400, image=(8, 8)))
    assert found.errors(victim["x"]).max() < 1e-3 and found.y.tolist() == victim["y"].tolist()


def test_central_noise_hides_a_client_from_those_who_see_the_model_and_not_from_the_server() -> None:
    victim = DIGITS.take([11])
    private = job(stages=(hansa.Clip(1.0), hansa.UniformMean(), hansa.Gaussian(1.0)))
    released = of_all(private, hansa.Clients.of({"a": victim}))
    assert attacked(private, released, DLG(iterations=300, restarts=1)).errors(victim["x"]).min() > 0.1
    assert attacked(private, of_one(private, victim, 1), DLG()).errors(victim["x"]).max() < 1e-3


def test_a_client_that_adds_its_own_noise_is_hidden_from_the_server() -> None:
    victim = DIGITS.take([11])
    private = job(stages=(hansa.Clip(1.0), hansa.UniformMean(), hansa.LocalGaussian(1.0)))
    for attack in (DLG(iterations=300, restarts=1), InvertingGradients(iterations=200)):
        assert attacked(private, of_one(private, victim, 1), attack).errors(victim["x"]).min() > 0.1


def test_the_mean_of_many_tells_no_more_of_one_than_the_mean_digit_does() -> None:
    many = hansa.Clients.of({f"{i:03}": DIGITS.take([i]) for i in range(100)})
    together = job(cohort=100)
    found = attacked(together, of_all(together, many), DLG(iterations=300, restarts=1))
    errors = found.errors(DIGITS["x"][:100])
    assert errors.mean() > 0.9 * BLIND and errors.min() > 0.02


def test_who_sees_only_the_total_is_shown_no_single_contribution() -> None:
    class Hidden(hansa.Sum):
        sees = "total"

    with pytest.raises(ConfigError, match="ask `of_all`"):
        of_one(job(reducer=Hidden()), DIGITS.take([0]), 1)


@pytest.mark.parametrize(
    ("work", "remedy"),
    [
        (hansa.LocalWork(lr=0.1, steps=1, optimiser="adam"), "plain SGD"),
        (hansa.LocalWork(lr=0.1, steps=1, momentum=0.9), "plain SGD"),
        (hansa.LocalWork(lr=0.1, steps=1, batch_size=2), "the client's secret"),
        (hansa.LocalWork(lr=0.0, steps=1), "tells nothing"),
    ],
)
def test_work_that_cannot_be_computed_through_is_refused(work: hansa.LocalWork, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        attacked(job(work=work), job().model.init(0), DLG(), examples=4)


def test_a_regression_is_refused() -> None:
    model = hansa.TorchModel(Smooth, loss=F.mse_loss)
    some = model.init(0)
    with pytest.raises(ConfigError, match="needs a classifier"):
        Seen(model=model, params=some, difference=some, work=ONE_STEP, examples=1, shape=(64,), classes=10)


# ── closed forms


@pytest.mark.parametrize("model", [hansa.LogisticModel(64, 10), hansa.MLPModel((64, 20, 10))], ids=["logistic", "MLP"])
@pytest.mark.parametrize("work", [ONE_STEP, THREE_EPOCHS], ids=["a step", "three epochs"])
def test_a_dense_layer_gives_its_one_input_away_exactly(model: hansa.Model, work: hansa.LocalWork) -> None:
    victim = DIGITS.take([42])
    plain = hansa.Job(model=model, algorithm=hansa.FedAvg(work), pipeline=job().pipeline, cohort=1, seed=1)
    exact = hansa.Job(
        model=type(model)(**{**vars(model), "dtype": "float64"}), algorithm=hansa.FedAvg(work),
        pipeline=job().pipeline, cohort=1, seed=1,
    )  # fmt: skip
    for wanted, error in ((plain, 1e-4), (exact, 1e-6)):
        found = linear.recover(of_one(wanted, victim, 1), 64)
        assert found is not None and np.abs(found - victim["x"][0]).max() <= error


def test_a_dense_layers_rows_mix_a_batch() -> None:
    rng = np.random.default_rng(0)
    x, pulls = rng.random((2, 6)), np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 2.0]])  # rows 0 and 2 see one example each
    rows = linear.every_row(pulls.T @ x, pulls.sum(axis=0))
    np.testing.assert_allclose(rows[0], x[1])
    np.testing.assert_allclose(rows[1:], [x.mean(axis=0), x[0]][:: 1 if np.allclose(rows[1], x.mean(axis=0)) else -1])


def test_a_bias_that_stood_still_tells_nothing() -> None:
    with pytest.raises(ConfigError, match="the bias did not change"):
        linear.invert_dense(np.ones((2, 3)), np.zeros(2))
    assert linear.recover(Tensors({"conv.weight": np.ones((2, 1, 3, 3))}), 64) is None
    assert linear.in_order(["10.bias", "2.weight", "2.bias"]) == ["2.bias", "2.weight", "10.bias"]


@pytest.mark.parametrize("row", range(0, 40, 7))
def test_idlg_reads_the_label_of_one_example(row: int) -> None:
    plain = job(Relus)
    change = of_one(plain, DIGITS.take([row]), 1)
    for name in (last_bias(change, 10), "2.weight"):
        assert labels_of(-np.asarray(change[name])).tolist() == [DIGITS["y"][row]]


def test_labels_of_a_batch_are_counted() -> None:
    batch = DIGITS.take(np.flatnonzero(np.isin(DIGITS["y"], [2, 7]))[:8])
    change = of_one(job(Relus), batch, 1)
    assert labels_of(-np.asarray(change["2.bias"]), 8).tolist() == sorted(batch["y"].tolist())


# ── words


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(500, 8), nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(tokens).mean(dim=1))


def texts(client: int) -> hansa.Dataset:
    rng = np.random.default_rng(client)
    vocabulary = rng.choice(500, 25, replace=False)
    return hansa.Dataset(x=rng.choice(vocabulary, (6, 5)), y=rng.integers(0, 2, 6))


def test_an_embedding_tells_which_words_were_written() -> None:
    def read(change: Tensors, client: int) -> words.Leak:
        return words.leak(words.words_in(change["words.weight"]), np.unique(texts(client)["x"]), 500)

    plain = job(Bag, THREE_EPOCHS, cohort=80)
    undefended = read(of_one(plain, texts(3), 80), 3)
    assert (undefended.recall, undefended.false_alarms) == (1.0, 0.0)
    everybody = hansa.Clients.of({f"{i:02}": texts(i) for i in range(80)})
    assert read(of_all(plain, everybody), 3).advantage < 0.2, "in a sum of many, nearly all words occur"
    private = job(Bag, THREE_EPOCHS, (hansa.Clip(1.0), hansa.UniformMean(), hansa.LocalGaussian(0.5)), cohort=80)
    assert read(of_one(private, texts(3), 80), 3).advantage == 0.0, "behind noise every row moves"
