"""Secure sums without a network: exact or void whoever drops out, and a server that lies learns nothing."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import hansa
from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, HansaError, JobError, ProtocolError, SecretRoundVoid
from hansa.core.model import Fit, LocalWork, Metrics
from hansa.core.pipeline import Arrived, Bound, Closed, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed, Poisson, Sampling
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.crypto import masking, shamir
from hansa.crypto.agreement import KeyPair, seal, unseal
from hansa.crypto.seats import SimulatedSeat
from hansa.crypto.secagg.graph import choose_graph, neighbourhoods, neighbours
from hansa.privacy.sampling import Turns
from hansa.stages.clip import Clip
from hansa.stages.distributed_noise import DistributedGaussian
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.quantise import Quantise
from hansa.stages.secure_sum import SecureSum

D = 37
SIGNAL = Signal(
    {
        "value": Part(shapes={"w": ((D,), "float32"), "b": ((2, 3), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64, l2=100, linf=100),
        "metric": Part(shapes={"loss": ((2,), "float64")}, bits=64),
    }
)


def bound(
    reducer: SecureSum,
    clients: int,
    stages: Sequence[Any] = (Clip(1.0), UniformMean(), Quantise(16)),
    sampling: Sampling | None = None,
) -> Bound:
    setting = Setting(
        sampling=sampling or Fixed(clients, quorum=1), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)),
        population=clients, sees="total",
    )  # fmt: skip
    return Pipeline(stages, reducer).bind(SIGNAL, setting)


def contribution(at: int) -> Tensors:
    rng = np.random.default_rng(at)
    return Tensors(
        {
            "value/w": rng.normal(size=D).astype("float32") * 0.05,
            "value/b": rng.normal(size=(2, 3)).astype("float32") * 0.05,
            "weight/weight": np.array([float(at + 1)]),
            "metric/loss": np.array([at * 0.25, at + 1.0]),
        }
    )


def encoded(b: Bound, at: int) -> Tensors:
    rng = np.random.default_rng(1000 + at)
    return b.encode(stack([contribution(at)]), b.start(), EMPTY, [rng])[0].map(lambda a: a[0])


@dataclass
class Play:
    """One round: who drops out after which leg, and what the network does to messages."""

    b: Bound
    clients: int
    leaves: Mapping[int, int] = field(default_factory=dict)  # client -> the first leg it does not answer
    up: Callable[[str, int, Tensors], Tensors] = lambda name, leg, message: message
    down: Callable[[str, int, Tensors], Tensors] = lambda name, leg, message: message
    context: bytes = b"run/train/0.0"
    rejected: dict[str, str] = field(default_factory=dict)
    refused: dict[str, HansaError] = field(default_factory=dict)
    sent: dict[str, list[Tensors]] = field(default_factory=dict)
    counted: tuple[str, ...] = ()

    def run(self) -> Tensors:
        reducer, secret = self.b.reducer, os.urandom(32)
        assert reducer is not None
        names = [f"c{at:04}" for at in range(self.clients)]
        roles = {
            name: reducer.worker(encoded(self.b, at), SimulatedSeat(name, self.context, secret))
            for at, name in enumerate(names)
        }
        server = reducer.server(names, SimulatedSeat("server", self.context, secret))
        next(server)
        here, inbox = list(names), dict.fromkeys(names)
        for leg in range(reducer.legs):
            answered = []
            for name in here:
                if self.leaves.get(int(name[1:]), 9) <= leg:
                    continue
                try:
                    message = roles[name].send(inbox[name])  # type: ignore[arg-type]
                except HansaError as error:
                    self.refused[name] = error
                    continue
                message = self.up(name, leg, message)
                self.sent.setdefault(name, []).append(message)
                if leg == reducer.counted:
                    self.b.admit(message, name)
                if isinstance(reason := server.send(Arrived(name, leg, message)), str):
                    self.rejected[name] = reason
                    continue
                answered.append(name)
            if leg == reducer.counted:
                self.counted = tuple(answered)
            try:
                answers = server.send(Closed(leg, tuple(answered)))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            assert isinstance(answers, Mapping)
            inbox = {name: self.down(name, leg, answers[name]) for name in answered}  # type: ignore[misc]
            here = answered
        raise AssertionError("no total")


def total(b: Bound, names: Sequence[str]) -> dict[str, np.ndarray]:
    messages = [encoded(b, int(name[1:])) for name in names]
    return {
        name: np.sum(
            [np.asarray(m[name]).astype("int64" if name.startswith("value") else "float64") for m in messages], 0
        )
        for name in messages[0]
    }


def exact(play: Play, given: Tensors) -> None:
    wanted = total(play.b, play.counted)
    assert set(given) == set(wanted)
    for name, array in wanted.items():
        if name.startswith("value"):
            assert given[name].dtype == np.int64 and np.array_equal(given[name], array), name
        else:
            assert np.allclose(given[name], array, rtol=0, atol=1e-6), name


@given(st.integers(3, 14), st.floats(0.51, 1.0), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_sum_is_exact_or_the_round_is_void(clients: int, threshold: float, data: st.DataObject) -> None:
    leaves = data.draw(st.dictionaries(st.integers(0, clients - 1), st.integers(0, 4), max_size=clients))
    play = Play(bound(SecureSum(threshold), clients), clients, leaves)
    stay = clients - len(leaves)
    try:
        exact(play, play.run())
    except SecretRoundVoid as reason:
        assert "nothing of this round was revealed" in str(reason)
        assert stay < max(clients // 2 + 1, threshold * clients) or stay < 3


@pytest.mark.parametrize("leg", range(5))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_drop_outs_at_every_leg_leave_the_sum_of_those_that_masked(leg: int, share: float) -> None:
    clients = 15
    leaves = dict.fromkeys(range(int(share * clients)), leg)
    play = Play(bound(SecureSum(0.55), clients), clients, leaves)
    exact(play, play.run())
    assert len(play.counted) == clients - (len(leaves) if leg <= 2 else 0)


@pytest.mark.parametrize("pattern", list(itertools.product((False, True), repeat=4)))
def test_a_third_may_leave_in_any_legs_and_who_masked_is_in_the_sum(pattern: tuple[bool, ...]) -> None:
    """Prepare (legs 0 and 1): who leaves is out; commit (2): who masked is in; finalize (3, 4): enough suffice."""
    legs = [leg for leg, left in zip((0, 1, 2, 4), pattern, strict=True) if left]
    leaves = {at: legs[at % len(legs)] for at in range(4)} if legs else {}
    play = Play(bound(SecureSum(0.6), 12), 12, leaves)
    exact(play, play.run())
    assert play.counted == tuple(f"c{at:04}" for at in range(12) if leaves.get(at, 9) > 2)


def test_traffic_beside_the_vectors_grows_with_the_square_of_the_cohort_and_with_neighbours_hardly_more_than_it() -> (
    None
):
    def beside(reducer: SecureSum, clients: int) -> int:
        play = Play(bound(reducer, clients), clients)
        play.run()
        return sum(message.size_bytes for sent in play.sent.values() for leg, message in enumerate(sent) if leg != 2)

    sizes = (8, 16, 32)
    whole = np.polyfit(np.log(sizes), np.log([beside(SecureSum(), n) for n in sizes]), 1)[0]
    assert 1.6 < whole < 2.1
    many = (200, 800, 3200)
    links = [n * choose_graph(n, 0.05, 0.05).neighbours for n in many]
    assert np.polyfit(np.log(many), np.log(links), 1)[0] < 1.3


def test_neighbourhoods_and_groups_give_the_same_sum() -> None:
    rates = SecureSum(dropout=0.05, corrupt=0.05)
    sparse = Play(bound(rates, 60, sampling=Fixed(60, quorum=57)), 60, {3: 2, 17: 4, 40: 1})
    exact(sparse, sparse.run())
    assert sparse.sent["c0000"][1]["sealed"].shape[0] < 59
    groups = Play(bound(SecureSum(0.6, groups_of=6, lying=False), 20), 20, {1: 2, 2: 4})
    exact(groups, groups.run())
    weighted = Play(bound(SecureSum(), 6, (Clip(2.0), WeightedMean(max_weight=10), Quantise(20))), 6)
    exact(weighted, weighted.run())


def test_below_the_threshold_the_round_says_so() -> None:
    for leg in range(1, 5):
        with pytest.raises(SecretRoundVoid, match="nothing of this round was revealed"):
            Play(bound(SecureSum(0.7), 10), 10, dict.fromkeys(range(4), leg)).run()


@pytest.mark.parametrize(("sampling", "fewest"), [(Fixed(10), 10), (Fixed(10, quorum=8), 8), (Fixed(10, quorum=2), 3)])
def test_no_client_goes_on_with_fewer_than_the_job_has_in_every_round(sampling: Sampling, fewest: int) -> None:
    """Or a server that lies could leave it alone among clients that work for it."""
    b = bound(SecureSum(0.51), 10, sampling=sampling)
    exact(play := Play(b, 10, dict.fromkeys(range(fewest, 10), 0)), play.run())
    for leg in (0, 1, 2):
        play = Play(b, 10, dict.fromkeys(range(fewest - 1, 10), leg))
        with pytest.raises(SecretRoundVoid, match="nothing of this round was revealed"):
            play.run()

    def few(name: str, leg: int, message: Tensors) -> Tensors:
        return message.updated({"survivors": message["survivors"][: fewest - 1]}) if leg == 2 else message

    play = Play(b, 10, dict.fromkeys(range(fewest, 10), 0), down=few)
    with pytest.raises(SecretRoundVoid):
        play.run()
    if fewest > 3:
        assert all(f"no round has fewer than {fewest}" in str(play.refused[f"c{at:04}"]) for at in range(fewest - 1))


@pytest.mark.parametrize(
    ("sampling", "fewest"),
    [(Poisson(0.5), 400), (Poisson(0.05), 3), (Turns(100, groups=10), 3), (Poisson(0.5, quorum=300), 300)],
)
def test_fewest_clients_are_those_that_chance_brings(sampling: Sampling, fewest: int) -> None:
    setting = Setting(sampling=sampling, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=1000)
    assert SecureSum().fewest(setting) == pytest.approx(fewest, rel=0.31)
    assert SecureSum(groups_of=50, lying=False).fewest(setting) == 3


# -- what the server receives


def test_what_leaves_a_worker_is_uniform_and_holds_nothing_of_its_update() -> None:
    windows: set[bytes] = set()
    captured, counts = b"", np.zeros(256)
    b = bound(SecureSum(), 4)
    fields = b.reducer.layout.fields  # type: ignore[union-attr]
    for at in range(4):
        for array in encoded(b, at).values():
            raw = np.asarray(array).tobytes()
            windows |= {raw[i : i + 8] for i in range(len(raw) - 7) if len(set(raw[i : i + 8])) > 5}
    for attempt in range(24):
        play = Play(b, 4, context=b"run/train/0.%d" % attempt)
        play.run()
        for messages in play.sent.values():
            for message in messages:
                captured += b"".join(np.asarray(array).tobytes() for array in message.values())
            for run, bits in zip(fields.unpack(np.asarray(messages[2]["masked/vector"])), fields.bits, strict=True):
                for shift in (0, bits - 8):  # the lowest and the highest eight bits of every residue
                    counts += np.bincount((run >> shift).astype(np.int64) & 255, minlength=256)
    assert windows and not any(window in captured for window in windows)
    expected = counts.sum() / 256
    assert expected > 20
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 6 * 22.6 < chi < 255 + 6 * 22.6


def test_two_attempts_share_no_byte_of_key_or_mask() -> None:
    b = bound(SecureSum(), 3)
    first, second = Play(b, 3), Play(b, 3)
    first.run(), second.run()
    for name in first.sent:
        for one, other in zip(first.sent[name], second.sent[name], strict=True):
            assert one != other


# -- messages that are wrong


@pytest.mark.parametrize("leg", range(5))
def test_a_malformed_message_puts_its_sender_out_and_nobody_else(leg: int) -> None:
    def broken(name: str, at: int, message: Tensors) -> Tensors:
        if name != "c0001" or at != leg or at == 2:
            return message
        return Tensors({key: np.asarray(array)[:-1] for key, array in message.items()})

    play = Play(bound(SecureSum(0.6), 8), 8, up=broken)
    exact(play, play.run())
    assert set(play.rejected) == ({"c0001"} if leg != 2 else set())


def test_wrong_shares_are_noticed_and_others_are_used() -> None:
    def wrong(name: str, leg: int, message: Tensors) -> Tensors:
        if leg != 4 or name != "c0000":
            return message
        return Tensors({"revealed": (np.asarray(message["revealed"]) + 1) % np.uint32(shamir.PRIME)})

    play = Play(bound(SecureSum(0.6), 8), 8, {7: 2}, up=wrong)
    exact(play, play.run())
    everybody = lambda name, leg, message: wrong("c0000", leg, message)  # noqa: E731
    with pytest.raises(SecretRoundVoid, match="do not fit what it advertised"):
        Play(bound(SecureSum(0.6), 8), 8, {7: 2}, up=everybody).run()


def test_a_wrong_signature_or_one_of_another_round_is_refused() -> None:
    old = Play(bound(SecureSum(0.6), 6), 6, context=b"run/train/0.0")
    old.run()

    def replayed(name: str, leg: int, message: Tensors) -> Tensors:
        return old.sent[name][leg] if name == "c0002" and leg in (0, 3) else message

    play = Play(bound(SecureSum(0.6), 6), 6, up=replayed, context=b"run/train/1.0")
    exact(play, play.run())
    assert "no signature" in play.rejected["c0002"]


# -- a server that lies: see also tests/testing/attacks/test_malicious_server.py


@pytest.mark.parametrize(
    "survivors", [[0, 0, 1, 2, 3, 4], [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 99], [1, 2, 3, 4, 5], [-1, 0, 1, 2, 3, 4]]
)
def test_lists_that_are_malformed_are_refused(survivors: list[int]) -> None:
    def tamper(name: str, leg: int, message: Tensors) -> Tensors:
        return Tensors({"survivors": np.array(survivors)}) if leg == 2 and name == "c0000" else message

    play = Play(bound(SecureSum(0.6), 6), 6, down=tamper)
    exact(play, play.run())
    assert isinstance(play.refused["c0000"], ProtocolError)


def test_nobody_reveals_both_secrets_of_another() -> None:
    play = Play(bound(SecureSum(0.6), 6), 6, {4: 2, 5: 1})
    play.run()
    own, whole = shamir.limbs(bytes(16)), shamir.limbs(bytes(32))
    for name, messages in play.sent.items():
        if len(messages) < 5:
            continue
        rows = np.asarray(messages[4]["revealed"])
        me = int(name[1:])
        holders = [at for at in range(6) if at != me] + [me]
        for at, row in zip(holders, rows, strict=True):
            if at == 5:
                assert not row.any()  # it never shared
            elif at == 4:
                assert row[own:].any()  # the mask key's share alone, which is longer
            else:
                assert not row[own:].any() and row[:own].any()
        assert rows.shape == (6, whole)


# -- what is refused before any data


def test_what_cannot_be_summed_is_refused_with_its_remedy() -> None:
    for stages, clients, reducer, fault in (
        ((UniformMean(),), 5, SecureSum(), "'value' is real: put Clip"),
        ((Clip(1.0), UniformMean(), Quantise(16)), 2, SecureSum(), "over 2 clients hides nobody"),
        ((Clip(1.0), UniformMean(), Quantise(16)), 12, SecureSum(dropout=0.5, corrupt=0.5), "no graph of 12 clients"),
    ):
        with pytest.raises(JobError, match=fault):
            bound(reducer, clients, stages)
    shares = (Clip(1.0), UniformMean(), DistributedGaussian(3.0, bits=20))
    with pytest.raises(JobError, match="too few shares of the clients' noise"):
        bound(SecureSum(groups_of=5, lying=False), 20, shares, Fixed(20))
    for wrong in ({"threshold": 0.5}, {"threshold": 1.1}, {"dropout": 0.1}, {"groups_of": 2}, {"groups_of": 9}):
        with pytest.raises(ConfigError):
            SecureSum(**wrong)  # type: ignore[arg-type]


def test_the_modulus_is_as_small_as_holds_the_sum_and_the_bits_are_those_on_the_wire() -> None:
    for clients in (3, 100, 1000):
        b = bound(SecureSum(), clients)
        bits = int(np.ceil(np.log2(2 * clients * 32767 + 1)))
        vector = b.signal.shapes["masked/vector"][0][0]
        assert vector <= -(-(D * bits) // 8) + -(-(6 * bits) // 8) + 3 * 8 + 2
        assert b.bits() == 8 * vector
    message = Play(bound(SecureSum(), 3), 3)
    message.run()
    assert message.sent["c0000"][2].size_bytes * 8 == message.b.bits()


def test_extreme_contributions_do_not_overflow_the_modulus() -> None:
    b = bound(SecureSum(), 5)
    layout = b.reducer.layout  # type: ignore[union-attr]
    for sign in (1, -1):
        extreme = Tensors(
            {
                "value/w": np.full(D, sign * 40000, np.int32), "value/b": np.full((2, 3), sign * 32767, np.int16),
                "metric/loss": np.full(2, sign * 1e300), "weight/weight": np.array([1.0]),
            }
        )  # fmt: skip
        runs = [np.sum([layout.encode(extreme)[i] for _ in range(5)], 0) for i in range(len(layout.grids))]
        runs = [run.astype(zero.dtype) for run, zero in zip(runs, layout.fields.zeros(), strict=True)]
        got = layout.decode(runs)
        assert (got["value/w"] == sign * 5 * 32767).all()
        assert np.allclose(got["metric/loss"], sign * 5 * 2.0**30)


# -- the parts


@given(st.integers(1, 40), st.data())
@settings(max_examples=40, deadline=None)
def test_shamir_gives_a_secret_back_from_any_threshold_of_shares(count: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, count))
    secret = data.draw(st.binary(min_size=1, max_size=40))
    shares = shamir.split(secret, count, threshold, os.urandom)
    places = data.draw(st.permutations(range(count)))[:threshold]
    assert shamir.combine(shares[places], places, len(secret)) == secret
    if threshold > 1:
        # One share fewer fits every other first limb as well: it says nothing.
        assert shares.max() < shamir.PRIME
        with pytest.raises(ProtocolError):
            shamir.combine(shares[[0, 0]], [0, 0], len(secret))


@given(st.integers(1, 64), st.integers(1, 50) | st.just(140_001), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_packing_is_undone_and_as_short_as_it_can_be(bits: int, count: int, seed: int) -> None:
    top = (1 << bits) - 1
    vector = np.random.default_rng(seed).integers(0, top, count, np.uint64, endpoint=True).astype(masking.words(bits))
    packed = masking.pack(vector, bits)
    assert len(packed) == -(-count * bits // 8)
    assert np.array_equal(masking.unpack(packed, bits, count), vector)
    total, modulus = vector[::-1].copy(), vector.dtype.type(top)
    with np.errstate(over="ignore"):
        wanted = (total + vector) & modulus
    masking.add_packed(total, packed, bits)
    assert np.array_equal(total & modulus, wanted)
    for wrong in (packed[:-1], np.append(packed, packed[:1])):
        with pytest.raises(ProtocolError):
            masking.add_packed(total, wrong, bits)


def test_masks_of_one_key_cancel_and_seals_hold_what_they_belong_to() -> None:
    runs = [np.arange(100_000, dtype=np.uint32), np.arange(7, dtype=np.uint64)]
    before = [run.copy() for run in runs]
    masking.add_mask(runs, b"k" * 16)
    assert not np.array_equal(runs[0], before[0])
    masking.add_mask(runs, b"k" * 16, -1)
    assert all(np.array_equal(a, b) for a, b in zip(runs, before, strict=True))
    a, b = KeyPair.new(os.urandom), KeyPair.new(os.urandom)
    key = a.agree(b.public, b"x")
    assert key == b.agree(a.public, b"x") != a.agree(b.public, b"y")
    sealed = seal(key, b"content", b"from a to b", os.urandom)
    assert unseal(key, sealed, b"from a to b") == b"content"
    for wrong in (
        (key, sealed, b"from b to a"),
        (key, sealed[:-1], b"from a to b"),
        (key[::-1], sealed, b"from a to b"),
    ):
        with pytest.raises(ProtocolError):
            unseal(*wrong)
    with pytest.raises(ProtocolError, match="small order"):
        a.agree(bytes(32), b"x")
    assert a.secret.hex() not in repr(a) and "secret" not in repr(a)


def test_the_chooser_gives_the_published_sizes() -> None:
    chosen = {
        (c, d): [choose_graph(n, c, d).neighbours for n in (100, 1000)]
        for c, d in ((0.05, 0.05), (0.2, 0.1), (0.33, 0.33))
    }
    assert chosen == {(0.05, 0.05): [12, 34], (0.2, 0.1): [32, 74], (0.33, 0.33): [68, 310]}
    assert choose_graph(1000, 0.2, 0.1).threshold == 45
    for n, corrupt in ((100, 0.05), (1000, 0.2)):
        graph = choose_graph(n, corrupt, 0.1, lying=True)
        assert 2 * graph.threshold > graph.neighbours + 1 + corrupt * graph.neighbours
        assert graph.leak <= 2.0**-40 and graph.failure <= 2.0**-30
        less = choose_graph(n, corrupt, 0.1, lying=True, fewest=9 * n // 10)
        assert less.neighbours > graph.neighbours or n == 100
        assert choose_graph(n, corrupt, 0.1, fewest=9 * n // 10) == choose_graph(n, corrupt, 0.1)
    whole, grouped = choose_graph(500, 0.1, 0.1), choose_graph(10_000, 0.1, 0.1, group=500)
    assert whole.neighbours < grouped.neighbours < 100, "a group may have more than its share of the corrupt"
    linked = neighbourhoods(50, 12, b"s" * 32)
    assert all(len(near) == 12 and all(at in linked[other] for other in near) for at, near in enumerate(linked))
    assert neighbourhoods(50, 12, b"t" * 32) != linked
    for degree in (12, 48, 49, 60):
        whole = neighbourhoods(50, degree, b"s" * 32)
        assert [neighbours(at, 50, degree, b"s" * 32) for at in range(50)] == whole


# -- rounds of metrics alone


class Accurate(hansa.LogisticModel):
    """Metrics whose bounds its clients reach: without a loss, which has none."""

    metrics: ClassVar[Mapping[str, float]] = {"accuracy": 1.0}

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        whole = hansa.LogisticModel(self.inputs, self.classes).fit(params, data, work, rng)
        return replace(whole, metrics={"accuracy": whole.metrics["accuracy"]})

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        return {"accuracy": hansa.LogisticModel(self.inputs, self.classes).evaluate(params, data)["accuracy"]}


def test_an_evaluation_of_more_clients_than_a_round_has_does_not_wrap() -> None:
    train, _ = hansa.data.split(hansa.data.digits())
    clients = hansa.data.partition(train, hansa.data.IID(), clients=40)

    def measured(reducer: Any) -> Mapping[str, float]:
        job = hansa.Job(
            model=Accurate(64, 10), algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1, batch_size=9)),
            pipeline=hansa.Pipeline([Clip(1.0), UniformMean(), Quantise(16)], reducer), cohort=3, rounds=1,
            max_examples=36, evaluation=hansa.Evaluation(workers=40),
        )  # fmt: skip
        return hansa.train(job, clients).rounds[0].workers

    assert measured(SecureSum()) == pytest.approx(measured(hansa.Sum()), abs=1e-9)


def test_an_evaluation_of_fewer_clients_than_a_round_has_is_refused() -> None:
    job = hansa.Job(
        model=hansa.LogisticModel(64, 10), algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1, batch_size=9)),
        pipeline=hansa.Pipeline([Clip(1.0), UniformMean(), Quantise(16)], SecureSum()), cohort=8,
        evaluation=hansa.Evaluation(workers=4),
    )  # fmt: skip
    with pytest.raises(JobError, match="workers=4 hide each other less than a round's 8 do"):
        job.check(20)
