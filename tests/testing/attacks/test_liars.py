"""Every attack does what it promises to a mean that nobody defends, and the defences hold against the worst of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import hansa
from hansa.core.errors import ConfigError
from hansa.core.pipeline import Arrived, Closed, Reducer, Seat
from hansa.core.tensors import Tensors
from hansa.testing.attacks.adversary import Adversary, Attack
from hansa.testing.attacks.byzantine import ALittle, InnerProduct, Lazy, Noise, Scaled, SignFlip, Zero, z_max
from hansa.testing.attacks.poison import Backdoor, EdgeCase, LabelFlip, Poison, Poisoned

N, LIARS = 10, ("1", "4", "8")
TRAIN, TEST = hansa.data.split(hansa.data.digits())
CLIENTS = hansa.data.partition(TRAIN.take(np.arange(600)), hansa.data.IID(), clients=N)
MARK = Backdoor(target=0, pixels=(0, 1, 8, 9))


def train(
    reducer: Reducer | None = None,
    attack: Attack | None = None,
    poison: Poison | None = None,
    rounds: int = 8,
    liars: Sequence[str] = LIARS,
) -> hansa.History:
    real = reducer or hansa.Sum()
    job = hansa.Job(
        model=hansa.LogisticModel(64, 10),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=2, batch_size=10)),
        pipeline=hansa.Pipeline([hansa.UniformMean()], real if attack is None else Adversary(real, liars, attack)),
        cohort=N,
        rounds=rounds,
        evaluation=hansa.Evaluation(data=TEST, every=rounds),
        seed=1,
    )
    return hansa.train(job, CLIENTS if poison is None else Poisoned(CLIENTS, liars, poison))


def accuracy(history: hansa.History, data: hansa.Dataset = TEST) -> float:
    right, asked = history.job.model.evaluate(history.params, data)["accuracy"]
    return right / asked


@pytest.fixture(scope="module")
def clean() -> float:
    found = accuracy(train())
    assert found > 0.9
    return found


WRECKING = [SignFlip(4.0), Noise(30.0), Scaled(-5.0), InnerProduct(4.0)]


@pytest.mark.parametrize("attack", WRECKING, ids=str)
def test_an_undefended_mean_is_wrecked(attack: Attack, clean: float) -> None:
    assert accuracy(train(attack=attack)) < clean - 0.25


@pytest.mark.parametrize("attack", [SignFlip(4.0), InnerProduct(4.0), Scaled(1e6), ALittle(1.5)], ids=str)
@pytest.mark.parametrize("reducer", [hansa.Median(), hansa.MultiKrum(3), hansa.GeometricMedian()], ids=str)
def test_a_robust_reducer_stays_near_the_undisturbed_accuracy(attack: Attack, reducer: Reducer, clean: float) -> None:
    assert accuracy(train(reducer, attack)) > clean - 0.12  # three liars of ten cost a median most


@pytest.mark.parametrize("reducer", [hansa.Median(), hansa.TrimmedMean(0.2)], ids=str)
def test_a_fifth_of_sign_flippers_costs_a_median_or_trimmed_mean_less_than_three_points(
    reducer: Reducer, clean: float
) -> None:
    job = train(reducer).job
    flipped = replace(job, pipeline=replace(job.pipeline, reducer=Adversary(reducer, LIARS[:2], SignFlip())))
    assert accuracy(hansa.train(flipped, CLIENTS)) > clean - 0.03


def test_a_client_a_million_times_as_large_leaves_a_bounded_round_as_it_was() -> None:
    """Row C2.2: the loss after the round is that of the round without the lie, within what one client may move."""

    def loss(reducer: Reducer, attack: Attack | None) -> float:
        reducer = reducer if attack is None else Adversary(reducer, LIARS[:1], attack)
        pipeline = hansa.Pipeline([hansa.Clip(1.0), hansa.UniformMean()], reducer)
        job = replace(train(rounds=1).job, pipeline=pipeline)
        return hansa.train(job, CLIENTS).rounds[-1].central["loss"]

    honest = loss(hansa.Sum(), None)
    assert loss(hansa.Sum(), Scaled(1e6)) > 100 * honest
    for reducer in (hansa.NormBound(), hansa.NormBound(drop=True), hansa.CentredClipping(1.0), hansa.Krum(1)):
        assert loss(reducer, Scaled(1e6)) == pytest.approx(honest, rel=0.1)
    assert loss(hansa.NormBound(), Scaled(1e6)) == pytest.approx(honest, rel=1e-4), "the liar's own update, clipped"


# ── what each of them sends


def forged(attack: Attack, rows: np.ndarray, liars: Sequence[int]) -> np.ndarray:
    names = [str(i) for i in range(len(rows))]
    seen: list[np.ndarray] = []

    class Recording(hansa.Sum):
        def server(self, cohort: Sequence[str], seat: Seat | None = None):  # type: ignore[no-untyped-def]
            while isinstance(event := (yield None), Arrived):
                seen.append(np.asarray(event.message["value/w"]))
                assert event.message["metric/loss"].tolist() == [1.0, 2.0], "metrics are not what attacks are about"
            return Tensors()

    server = Adversary(Recording(), [names[i] for i in liars], attack).server(names, Seat("server", b"round 3"))
    next(server)
    for name, row in zip(names, rows, strict=True):
        server.send(Arrived(name, 0, Tensors({"value/w": row, "metric/loss": np.array([1.0, 2.0])})))
    with pytest.raises(StopIteration):
        server.send(Closed(0, tuple(names)))
    honest = [i for i in range(len(rows)) if i not in liars]
    assert np.array_equal(np.stack(seen)[honest], rows[honest]), "the honest are not touched, and keep their places"
    return np.stack(seen)[list(liars)]


ROWS = np.random.default_rng(0).standard_normal((7, 50)).astype(np.float32)


def test_liars_send_what_their_attack_says() -> None:
    others = ROWS[[0, 1, 3, 4, 6]].astype(float)
    np.testing.assert_allclose(forged(SignFlip(2.0), ROWS, [2, 5]), -2 * ROWS[[2, 5]], rtol=1e-6)
    np.testing.assert_allclose(forged(Scaled(9.0), ROWS, [2, 5]), 9 * ROWS[[2, 5]], rtol=1e-6)
    assert not forged(Zero(), ROWS, [2, 5]).any()
    little = others.mean(axis=0) - 1.5 * others.std(axis=0)
    np.testing.assert_allclose(forged(ALittle(1.5), ROWS, [2, 5]), np.stack([little, little]), rtol=1e-5, atol=1e-6)
    turned = -0.5 * others.mean(axis=0)
    np.testing.assert_allclose(forged(InnerProduct(), ROWS, [2, 5]), np.stack([turned, turned]), rtol=1e-5, atol=1e-6)
    noise = forged(Noise(3.0), ROWS, [2, 5])
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 3 * np.linalg.norm(ROWS[[2, 5]], axis=1), rtol=1e-5)
    assert abs(np.corrcoef(noise[0], ROWS[2])[0, 1]) < 0.5


def test_a_lazy_worker_is_another_ones_shadow() -> None:
    copy = forged(Lazy(0.01), ROWS, [2])[0]
    likeness = [np.corrcoef(copy, row)[0, 1] for row in ROWS]
    assert max(likeness) > 0.999 and int(np.argmax(likeness)) != 2


def test_a_little_hides_among_the_honest_where_a_sign_flip_stands_out() -> None:
    rows = np.random.default_rng(1).standard_normal((10, 50)) + 2
    spread = np.linalg.norm(rows - rows.mean(axis=0), axis=1).max()
    assert np.linalg.norm(forged(ALittle(), rows, [1, 2, 3])[0] - rows.mean(axis=0)) < spread
    assert np.linalg.norm(forged(SignFlip(), rows, [1, 2, 3])[0] - rows.mean(axis=0)) > spread
    assert z_max(50, 24) == pytest.approx(1.4261, abs=1e-4) and z_max(10, 5) > 1e-9


def test_attacks_on_integers_stay_what_can_be_sent() -> None:
    rows = np.arange(-21, 21, dtype=np.int8).reshape(7, 6)
    sent = forged(Scaled(100.0), rows, [0, 6])
    assert sent.dtype == np.int8 and sent.min() == -128 and sent.max() == 127


def test_the_same_seed_and_round_give_the_same_lies() -> None:
    assert np.array_equal(forged(Noise(), ROWS, [2]), forged(Noise(), ROWS, [2]))


def test_a_reducer_that_hides_contributions_hides_them_from_liars() -> None:
    class Hidden(hansa.Sum):
        sees = "total"

    with pytest.raises(ConfigError, match="attack a reducer that sees each"):
        Adversary(Hidden(), LIARS, Zero())


# ── poisoned data


def test_flipped_labels_cost_accuracy_with_boosted_updates(clean: float) -> None:
    assert accuracy(train(attack=Scaled(3.0), poison=LabelFlip(10))) < clean - 0.15
    assert accuracy(train(hansa.Median(), attack=Scaled(3.0), poison=LabelFlip(10))) > clean - 0.05


def test_a_backdoor_opens_while_the_model_looks_as_good_as_before(clean: float) -> None:
    history = train(poison=MARK, rounds=20)
    assert accuracy(history) > clean - 0.04
    assert accuracy(history, MARK.success(TEST)) > 0.8
    assert accuracy(train(rounds=20), MARK.success(TEST)) < 0.2, "without the poison the mark means nothing"


def test_model_replacement_puts_the_backdoor_in_by_one_liar_in_two_rounds() -> None:
    one = LIARS[:1]
    assert accuracy(train(poison=MARK, rounds=2, liars=one), MARK.success(TEST)) < 0.4
    assert accuracy(train(attack=Scaled(N), poison=MARK, rounds=2, liars=one), MARK.success(TEST)) > 0.9
    defended = train(hansa.Krum(1), Scaled(N), MARK, rounds=2, liars=one)
    assert accuracy(defended, MARK.success(TEST)) < 0.2


def test_an_edge_case_is_learnt_without_harm_to_the_rest(clean: float) -> None:
    sevens = TEST.take(TEST["y"] == 7)
    lying = np.ascontiguousarray(np.rot90(sevens["x"].reshape(-1, 8, 8), axes=(1, 2))).reshape(-1, 64)
    poison = EdgeCase(hansa.Dataset(x=lying[:15]), target=0)
    unseen = hansa.Dataset(x=lying[15:], y=np.zeros(len(lying) - 15, np.int64))
    history = train(poison=poison, rounds=20)
    assert accuracy(history) > clean - 0.05
    assert accuracy(history, unseen) > 0.8 > 0.3 > accuracy(train(rounds=20), unseen)


def test_only_liars_hold_poisoned_data() -> None:
    poisoned = Poisoned(CLIENTS, LIARS, LabelFlip(10))
    assert poisoned.ids == CLIENTS.ids
    for name in CLIENTS:
        flipped = not np.array_equal(poisoned[name]["y"], CLIENTS[name]["y"])
        assert flipped == (name in LIARS)
    with pytest.raises(ConfigError, match="'nobody'"):
        Poisoned(CLIENTS, ["nobody"], MARK)
    with pytest.raises(ConfigError, match="share=0"):
        Backdoor(0, (1,), share=0)
