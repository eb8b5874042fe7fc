"""PrivUnit: unbiased, of the declared length, within ε, and with the error that the papers know."""

import math
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("scipy")
from scipy import integrate, stats

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, JobError
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.privacy.accountant import ALONE, PURE, SERVER, cost
from hansa.privacy.unit_vector import best_cap
from hansa.stages.clip import Clip
from hansa.stages.local_noise import LocalLaplace
from hansa.stages.mean import UniformMean
from hansa.stages.privunit import PrivUnit
from hansa.stages.quantise import Quantise
from hansa.stages.sum import Sum


def bound(*stages: Stage, shapes: dict[str, tuple[int, ...]], sides: tuple[str, ...] = ()) -> Bound:
    parts = {
        "value": Part(shapes={name: (shape, "float64") for name, shape in shapes.items()}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
        "metric": Part(shapes={"loss": ((2,), "float64")}, bits=64),
        **{side: Part(shapes={"s": ((4,), "float64")}) for side in sides},
    }
    setting = Setting(sampling=Fixed(10), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=100)
    return Pipeline(stages, Sum()).bind(Signal(parts), setting)


def sent(b: Bound, value: dict[str, np.ndarray], clients: int) -> np.ndarray:
    one = Tensors.join(value=Tensors(value), weight=Tensors({"weight": np.ones(1)}))
    message, _ = b.encode(stack([one] * clients), b.start(), EMPTY, [np.random.default_rng(0)] * clients)
    assert set(message.parts) == {"value"}
    return np.concatenate([np.asarray(message[name]).reshape(clients, -1) for name in message], axis=1)


@pytest.mark.parametrize("dimension", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("epsilon", [0.3, 2.0, 9.0])
def test_density_is_a_step_of_e_to_the_epsilon_and_the_mean_is_what_it_is_divided_by(
    dimension: int, epsilon: float
) -> None:
    cap, stream, unit = best_cap(dimension, epsilon), Stream(b"test"), np.eye(1, dimension)[0]
    drawn = np.stack([cap.draw(unit, stream) for _ in range(4000)])
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-12)
    along = drawn[:, 0]
    assert abs(along.mean() - cap.mean) < 4 * along.std() / math.sqrt(len(along)) + 1e-9
    assert np.abs(drawn[:, 1:].mean(axis=0)).max(initial=0) < 5 / math.sqrt(len(along))
    odds = cap.share / (cap.share + math.exp(-epsilon) * (1 - cap.share))  # of the cap: e^ε times its share's
    assert stats.binomtest(int((along >= cap.gamma).sum()), len(along), odds).pvalue > 1e-4
    assert odds / (1 - odds) == pytest.approx(math.exp(epsilon) * cap.share / (1 - cap.share))
    if dimension > 2:  # inside and outside, each as the uniform law has it
        law = lambda t: (1 - t * t) ** ((dimension - 3) / 2)  # noqa: E731
        assert integrate.quad(law, cap.gamma, 1)[0] / integrate.quad(law, -1, 1)[0] == pytest.approx(cap.share)
        uniform = Stream(b"uniform")
        whole = np.random.default_rng(uniform.seed()).normal(size=(20_000, dimension))
        cosines = whole[:, 0] / np.linalg.norm(whole, axis=1)
        for side in (cosines < cap.gamma, cosines >= cap.gamma):
            same = along[(along < cap.gamma) == bool((cosines[side] < cap.gamma).all())]
            if side.sum() > 50:
                assert stats.ks_2samp(same, cosines[side]).pvalue > 1e-4


def test_no_other_cap_has_less_error_and_the_error_falls_as_the_paper_says() -> None:
    for dimension in (1000, 100_000):
        errors = [best_cap(dimension, epsilon).mean ** -2 / dimension for epsilon in (0.5, 1, 2, 4, 8, 16, 32)]
        assert errors == sorted(errors, reverse=True)
        # Asi, Feldman and Talwar 2022: the best is c(ε)·d/ε with c between 1/2 and 1 for large ε.
        assert all(0.4 < error * epsilon < 1.1 for error, epsilon in zip(errors[4:], (8, 16, 32), strict=True))
        assert errors[0] == pytest.approx(math.pi / 2 / math.tanh(0.25) ** 2, rel=0.05), "half spheres where ε is small"


@pytest.mark.parametrize("norm", [0.0, 0.5, 2.0])
def test_the_mean_over_clients_is_unbiased_and_no_message_is_longer_than_declared(norm: float) -> None:
    rng = np.random.default_rng(1)
    x = {"b": rng.normal(size=3), "w": rng.normal(size=(4, 2))}
    whole = np.sqrt(sum((a**2).sum() for a in x.values()))
    x = {name: a * norm / whole for name, a in x.items()}
    b = bound(Clip(2.0), UniformMean(), PrivUnit(3.0), shapes={"b": (3,), "w": (4, 2)})
    messages = sent(b, x, 6000)
    expected = np.concatenate([x["b"], x["w"].reshape(-1)])
    spread = messages.std(axis=0) / math.sqrt(len(messages))
    assert (np.abs(messages.mean(axis=0) - expected) < 5 * spread + 1e-5).all()
    lengths = np.linalg.norm(messages, axis=1)
    assert lengths.max() <= b.steps[2].out.parts["value"].l2 and lengths.std() < 1e-6, "and says nothing by its length"
    assert not (messages[0] == messages[1]).any()


def test_it_is_counted_as_any_mechanism_of_its_pure_epsilon() -> None:
    b = bound(Clip(1.0), UniformMean(), PrivUnit(2.0), Quantise(16), shapes={"w": (300,)}, sides=("control",))
    event = b.events()[0]
    assert (event.mechanism, event.noise_multiplier, event.sampling) == (PURE, 0.5, "none")
    one, ten = cost(Counter({event: 1}), 1e-6), cost(Counter({event: 10}), 1e-6)
    assert one.epsilon <= 2.0 + 1e-3 and one.relation == ALONE
    assert cost(Counter({event: 1}), 1e-6, against=SERVER).epsilon == one.epsilon
    assert one.epsilon < ten.epsilon <= 20.01 and ten.rdp >= ten.pld - 1e-6
    laplace = bound(Clip(1.0), UniformMean(), LocalLaplace(2.0), shapes={"w": (300,)}).events()[0]
    assert cost(Counter({laplace: 10}), 1e-6).epsilon <= ten.epsilon, "no mechanism of the same ε costs more"


def test_its_error_is_far_below_that_of_laplace() -> None:
    x = {"w": np.ones(400) / 20}
    for stage, least, most in ((PrivUnit(8.0), 0.5, 2.0), (LocalLaplace(8.0), 100.0, 1e4)):
        messages = sent(bound(Clip(1.0), UniformMean(), stage, shapes={"w": (400,)}), x, 50)
        assert least < ((messages - x["w"]) ** 2).sum(axis=1).mean() * 8 / 400 < most


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_epsilon_or_has_no_bound_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError):
        PrivUnit(epsilon)
    with pytest.raises(ConfigError):
        best_cap(3, epsilon)
    with pytest.raises(JobError, match="put Clip before it"):
        bound(UniformMean(), PrivUnit(1.0), shapes={"w": (3,)})
