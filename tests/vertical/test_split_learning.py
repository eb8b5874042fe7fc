"""Split learning: the halves become what the whole network would, whoever has them and however pieces travel."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtimes.test_mesh import NAMES, identities, over_tls, parties
from tests.vertical.networks import CLASSES, Whole, layers, rows, train_whole
from torch import nn

from hansa.core.errors import (
    ConfigError,
    CorruptFile,
    DataError,
    ProtocolError,
    StateMismatch,
    TrainingFailed,
    Unreachable,
)
from hansa.core.runtime import Mesh
from hansa.runtimes.mesh import Parties
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable
from hansa.vertical.split import RandomisedResponse, Relay, RowNoise, SplitLearning, SplitParty, pieces

assert identities and parties  # fixtures
cross_entropy = nn.functional.cross_entropy
OPTIMISERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


class Case:
    """A plan, its modules, and which party has what."""

    def __init__(self, plan: SplitLearning, width: int = 8) -> None:
        self.plan = plan
        self.x, self.y = rows()
        columns = np.array_split(np.arange(self.x.shape[1]), len(plan.bottoms))
        self.features = [self.x[:, part].contiguous() for part in columns]
        self.bottoms = [layers(at, each.shape[1], width) for at, each in enumerate(self.features)]
        joined = width * (len(plan.bottoms) if plan.join == "concatenate" else 1)
        self.chain = [layers(10 + at, joined if not at else width, width, width) for at in range(len(plan.middles))]
        self.chain.append(layers(20, width if plan.middles else joined, width, CLASSES))

    def part(self, mesh: Mesh, **options: Any) -> SplitParty:
        plan, me = self.plan, mesh.me
        given: dict[str, Any] = {"announce": lambda _: None, **options}
        if me in plan.bottoms:
            given["bottom"] = self.bottoms[plan.bottoms.index(me)]
        given["middles"] = [self.chain[at] for at, owner in enumerate(plan.middles) if owner == me]
        if me == plan.top:
            given |= {"top": self.chain[-1], "loss": cross_entropy}
        return plan.part(mesh, **given)

    def data(self, me: str) -> dict[str, Any]:
        x = self.features[self.plan.bottoms.index(me)] if me in self.plan.bottoms else None
        return {"x": x, "y": self.y if me == self.plan.top else None}

    def play(
        self, optimiser: Callable[..., Any], then: Callable[[SplitParty], Any] | None = None, **options: Any
    ) -> list[Any]:
        def party(mesh: LocalMesh) -> Any:
            part = self.part(mesh, optimiser=optimiser, **options)
            history = part.fit(**self.data(mesh.me))
            return then(part) if then else history

        return together(LocalMesh.of(self.plan.parties), party)


PLANS = {
    "two parties": SplitLearning(bottoms=("shop",), top="bank", batch_size=20, epochs=3, seed=4),
    "label owner with features": SplitLearning(bottoms=("shop", "bank"), top="bank", batch_size=20, epochs=2),
    "three feature owners": SplitLearning(bottoms=("a", "b", "c"), top="bank", batch_size=32, epochs=2),
    "sum of activations": SplitLearning(bottoms=("a", "b"), top="bank", join="sum", batch_size=32, epochs=2),
    "folded": SplitLearning(bottoms=("clinic",), middles=("cloud",), top="clinic", batch_size=20, epochs=2),
    "several layers": SplitLearning(bottoms=("a",), middles=("b", "c", "b"), top="a", batch_size=20, epochs=2),
    "several owners, folded": SplitLearning(bottoms=("a", "b"), middles=("c",), top="b", batch_size=45, epochs=2),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_halves_become_bit_for_bit_what_the_whole_network_becomes(
    plan: SplitLearning, micro_batches: int, optimiser: str
) -> None:
    plan = SplitLearning(**{**vars(plan), "micro_batches": micro_batches})
    case = Case(plan)
    whole = Whole(copy.deepcopy(case.bottoms), copy.deepcopy(case.chain), plan.join)
    before = copy.deepcopy(whole.state_dict())
    losses = train_whole(whole, plan, case.features, case.y, OPTIMISERS[optimiser](whole.parameters()))
    histories = case.play(OPTIMISERS[optimiser])
    split = Whole(case.bottoms, case.chain, plan.join).state_dict()
    for name, value in whole.state_dict().items():
        assert not torch.equal(value, before[name]), f"{name} was not trained"
        assert torch.equal(value, split[name]), name
    told = histories[plan.parties.index(plan.top)]
    assert [epoch.loss for epoch in told] == losses
    assert all(
        epoch.loss is None
        for name, each in zip(plan.parties, histories, strict=True)
        if name != plan.top
        for epoch in each
    )


def test_images_and_tables_of_categories_train_as_in_the_whole_network() -> None:
    class Scan(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten())

    class Record(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towns, self.numbers = nn.Embedding(5, 3), nn.Linear(2, 3)

        def forward(self, town: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.towns(town) + self.numbers(x))

    class Both(nn.Module):
        def __init__(self, *parts: nn.Module) -> None:
            super().__init__()
            self.scan, self.record, self.top = parts

        def forward(self, image: torch.Tensor, town: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.top(torch.cat([self.scan(image), self.record(town, x)], 1))
            return outputs

    torch.manual_seed(3)
    image, town, x, y = torch.randn(50, 1, 6, 6), torch.randint(5, (50,)), torch.randn(50, 2), torch.randint(2, (50,))
    parts = [Scan(), Record(), nn.Linear(67, 2)]
    whole = Both(*copy.deepcopy(parts))
    plan = SplitLearning(bottoms=("clinic", "shop"), top="bank", batch_size=16, epochs=2)
    optimiser = torch.optim.SGD(whole.parameters(), lr=0.1)
    for epoch in range(2):
        for batch in map(torch.from_numpy, plan.batches(50, epoch)):
            cross_entropy(whole(image[batch], town[batch], x[batch]), y[batch]).backward()
            optimiser.step()
            optimiser.zero_grad()

    def party(mesh: LocalMesh) -> Any:
        quiet: dict[str, Any] = {"announce": lambda _: None}
        if mesh.me == "bank":
            return plan.part(mesh, top=parts[2], loss=cross_entropy, **quiet).fit(y=y)
        bottom, features = (parts[0], image) if mesh.me == "clinic" else (parts[1], (town, x))
        return plan.part(mesh, bottom=bottom, **quiet).fit(features)

    together(LocalMesh.of(plan.parties), party)
    split = Both(*parts).state_dict()
    assert all(torch.equal(value, split[name]) for name, value in whole.state_dict().items())


def test_micro_batches_change_rounding_alone() -> None:
    found = []
    for micro_batches in (1, 4):
        plan = SplitLearning(bottoms=("shop",), top="bank", batch_size=32, epochs=2, micro_batches=micro_batches)
        case = Case(plan)
        case.play(OPTIMISERS["sgd"])
        found.append(case.chain[-1].state_dict())
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-5), name


def test_prediction_and_evaluation_are_those_of_the_whole_network_and_the_label_owners_alone() -> None:
    plan = PLANS["several owners, folded"]
    case = Case(plan)

    def after(part: SplitParty) -> Any:
        x = case.data(part.me)["x"]
        outputs = part.predict(x)
        accuracy = {"accuracy": lambda outputs, y: float((outputs.argmax(1) == y).float().mean())}
        return outputs, part.evaluate(x, case.data(part.me)["y"], accuracy)

    results = dict(zip(plan.parties, case.play(OPTIMISERS["adam"], after), strict=True))
    whole = Whole(case.bottoms, case.chain)
    wanted = whole(*case.features).detach()
    outputs, measures = results.pop(plan.top)
    assert torch.equal(outputs, wanted)
    assert measures["loss"] == pytest.approx(float(cross_entropy(wanted, case.y)))
    assert measures["accuracy"] == pytest.approx(float((wanted.argmax(1) == case.y).float().mean()))
    assert all(each == (None, None) for each in results.values())


def test_predictions_of_many_groups_arrive_in_order() -> None:
    plan = SplitLearning(bottoms=("shop",), middles=("cloud",), top="bank", batch_size=2)
    case = Case(plan)  # 45 batches: three groups
    results = together(LocalMesh.of(plan.parties), lambda mesh: case.part(mesh).predict(case.data(mesh.me)["x"]))
    wanted = Whole(case.bottoms, case.chain)(*case.features).detach()
    assert torch.allclose(results[plan.parties.index("bank")], wanted, atol=1e-6)


def test_a_sequential_network_is_cut_into_pieces_that_share_its_parameters() -> None:
    network = layers(0, 4, 5, 6, 2)
    bottom, middle, top = pieces(network, 1, 3)
    x = torch.randn(7, 4)
    assert torch.equal(top(middle(bottom(x))), network(x))
    assert bottom[0].weight is network[0].weight
    with pytest.raises(ConfigError, match=r"cuts=\(3, 1\): give increasing places between 1 and 4"):
        pieces(network, 3, 1)


# -- what is agreed


def test_parties_that_state_other_settings_stop_at_once() -> None:
    def party(mesh: LocalMesh) -> Any:
        seed = 1 if mesh.me == "bank" else 2
        case = Case(SplitLearning(bottoms=("shop",), top="bank", seed=seed))
        return case.part(mesh).fit(**case.data(mesh.me))

    with pytest.raises(ConfigError, match="seed is . at '.*' and . at '.*': state the same everywhere"):
        together(LocalMesh.of(["bank", "shop"]), party)


def test_other_numbers_of_rows_and_other_alignments_are_refused() -> None:
    plan = SplitLearning(bottoms=("shop", "bank"), top="bank")
    case = Case(plan)

    def short(mesh: LocalMesh) -> Any:
        given = case.data(mesh.me)
        return case.part(mesh).fit(**(given if mesh.me == "bank" else {"x": given["x"][:-1]}))

    with pytest.raises(DataError, match="align the tables first"):
        together(LocalMesh.of(plan.parties), short)

    def other(mesh: LocalMesh) -> Any:
        x = case.data(mesh.me)["x"]
        columns = {str(at): x[:, at].numpy() for at in range(x.shape[1])}
        table = AlignedTable(mesh.me, columns, bytes([mesh.me == "bank"]) * 32)
        return case.part(mesh).fit(table, case.data(mesh.me)["y"])

    with pytest.raises(ConfigError, match="alignment is "):
        together(LocalMesh.of(plan.parties), other)


def test_tables_of_one_alignment_train() -> None:
    plan = SplitLearning(bottoms=("shop", "bank"), top="bank", epochs=2)
    case = Case(plan)

    def party(mesh: LocalMesh) -> Any:
        x = case.data(mesh.me)["x"]
        table = AlignedTable(mesh.me, {str(at): x[:, at].numpy() for at in range(x.shape[1])}, bytes([7]) * 32)
        return case.part(mesh).fit(table, case.data(mesh.me)["y"])

    first, second = together(LocalMesh.of(plan.parties), party)[0]
    assert second.loss < first.loss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottoms": ()}, "name at least one owner"),
        ({"bottoms": ("a", "a")}, r"\['a'\] occur twice"),
        ({"middles": ("b",)}, "'b' has the layers 0 and 1 in a row"),
        ({"micro_batches": 9}, "at most 8 are under way"),
        ({"micro_batches": 3, "batch_size": 2}, "a piece needs a row"),
        ({"join": "mean"}, "choose one of concatenate, sum"),
        ({"epochs": 0}, "epochs=0: at least 1"),
        ({"bottoms": ("b",), "activations": RowNoise(1.0)}, "nothing is sent"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SplitLearning(**{"bottoms": ("a",), "top": "b", **arguments})


def test_modules_must_fit_the_places_of_their_party() -> None:
    plan = SplitLearning(bottoms=("shop",), top="bank")
    bank, _ = LocalMesh.of(["bank", "shop"])
    with pytest.raises(ConfigError, match="bottom: 'bank' has none in the plan: leave it out"):
        plan.part(bank, bottom=nn.Linear(1, 1), top=nn.Linear(1, 1), loss=cross_entropy)
    with pytest.raises(ConfigError, match="loss: 'bank' has one in the plan: give it"):
        plan.part(bank, top=nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"the parties \['shop'\] of the plan are not in this mesh"):
        plan.part(LocalMesh.of(["bank"])[0], top=nn.Linear(1, 1), loss=cross_entropy)


# -- what is learnt


def test_what_each_party_learns_is_said_before_anything_is_trained() -> None:
    said: list[str] = []
    plan = SplitLearning(
        bottoms=("shop",), middles=("cloud",), top="bank",
        activations=RowNoise(2.0, 0.5), labels=RandomisedResponse(1.5, CLASSES),
    )  # fmt: skip
    Case(plan).play(OPTIMISERS["sgd"], announce=said.append)
    assert len(said) == 3 and said[0] == said[1] == said[2]
    assert "shop's bottom half, row by row, from which features can be rebuilt in part; rows clipped to 2" in said[0]
    assert "ε = 1.5 for each label" in said[0] and "unprotected" not in said[0]
    folded = PLANS["folded"].learns()
    assert all("label" in each and "guessed" in each for each in folded["cloud"] if "gradient" in each)
    assert "unprotected" in " ".join(folded["cloud"]) and "activations of clinic" in " ".join(folded["cloud"])


def test_noise_on_rows_is_clipped_and_of_the_stated_size() -> None:
    noise = RowNoise(clip=3.0, noise_multiplier=0.25)
    values = torch.randn(4000, 5) * 10
    clipped = noise.clipped(values)
    assert float(clipped.norm(dim=1).max()) <= 3.0 + 1e-5
    short = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    assert torch.equal(noise.clipped(short), short)
    from hansa.privacy.noise import Normals, own_stream

    difference = noise.noisy(clipped, Normals(own_stream())) - clipped
    assert float(difference.std()) == pytest.approx(1.5, rel=0.05)
    assert abs(float(difference.mean())) < 0.06


def test_noise_on_activations_reaches_the_receiver_and_nobody_can_foresee_it() -> None:
    plan = SplitLearning(bottoms=("shop",), top="bank", activations=RowNoise(1.0, 0.1), epochs=2)
    found = []
    for _ in range(2):
        case = Case(plan)
        case.play(OPTIMISERS["sgd"])
        found.append(case.chain[-1][0].weight.detach().clone())
    assert not torch.equal(*found)
    clear = Case(SplitLearning(bottoms=("shop",), top="bank", activations=RowNoise(1e9), epochs=2))
    plain = Case(SplitLearning(bottoms=("shop",), top="bank", epochs=2))
    clear.play(OPTIMISERS["sgd"])
    plain.play(OPTIMISERS["sgd"])
    assert torch.equal(clear.chain[-1][0].weight, plain.chain[-1][0].weight)  # a bound that binds nothing


def test_epsilon_of_a_row_grows_with_releases_and_is_the_known_one() -> None:
    pytest.importorskip("dp_accounting")
    from hansa.privacy.calibrate import analytic_gaussian

    noise = RowNoise(1.0, analytic_gaussian(1.0, 1e-5))
    assert noise.epsilon(1e-5) == pytest.approx(1.0, rel=0.02)
    assert noise.epsilon(1e-5, releases=4) > 1.9
    assert RowNoise(1.0).epsilon(1e-5) == float("inf")


def test_randomised_labels_are_kept_as_often_as_stated() -> None:
    from hansa.core.sampling import Stream

    response = RandomisedResponse(1.0, 4)
    y = torch.arange(40000) % 4
    replaced = response.replaced(y, Stream(b"test"))
    assert replaced.dtype == y.dtype
    assert response.kept == pytest.approx(np.e / (np.e + 3))
    assert float((replaced == y).float().mean()) == pytest.approx(response.kept, abs=0.01)
    moved = ((replaced - y) % 4)[replaced != y].bincount(minlength=4)[1:] / (replaced != y).sum()
    assert torch.allclose(moved, torch.full((3,), 1 / 3), atol=0.02)
    assert response.corrected(response.kept) == pytest.approx(1.0)
    with pytest.raises(DataError, match="whole numbers from 0 to 3"):
        response.replaced(torch.tensor([4]), Stream(b"test"))


def test_labels_are_randomised_once_however_often_training_goes_on() -> None:
    plan = SplitLearning(bottoms=("shop",), top="bank", batch_size=90, labels=RandomisedResponse(0.5, CLASSES))
    case = Case(plan)
    told: list[torch.Tensor] = []

    def party(mesh: LocalMesh) -> None:
        part = case.part(mesh)
        if mesh.me == "bank":
            part._loss = lambda outputs, y: told.append(y) or cross_entropy(outputs, y)  # type: ignore[func-returns-value]
        for _ in range(2):
            part.fit(**case.data(mesh.me))

    together(LocalMesh.of(plan.parties), party)
    order = torch.from_numpy(plan.order(90, 0))
    assert torch.equal(told[0], told[1]) and not torch.equal(told[0], case.y[order])


def leak(gradients: torch.Tensor, y: torch.Tensor) -> float:
    """How well norms of gradients tell two classes apart: the AUC of Li et al.'s norm attack."""
    norms = gradients.norm(dim=1)
    ranks = norms.argsort().argsort().double() + 1
    positive, negative = int(y.sum()), int((1 - y).sum())
    auc = float((ranks[y == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))
    return max(auc, 1 - auc)


@pytest.mark.parametrize(("gradients", "most"), [(None, 1.0), (RowNoise(0.01, 2.0), 0.7)])
def test_norms_of_gradients_give_rare_labels_away_unless_they_are_protected(gradients: Any, most: float) -> None:
    x, _ = rows(600)
    y = (x[:, 0] + 0.5 * x[:, 1] > 1.6).long()  # one in fourteen
    plan = SplitLearning(bottoms=("shop",), top="bank", batch_size=600, epochs=12, gradients=gradients)
    seen: list[torch.Tensor] = []

    class Spy(LocalMesh):
        def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> Any:
            given = super().recv(sender, tag, deadline_s)
            if tag.startswith("gradients"):
                seen.append(torch.from_numpy(np.frombuffer(given[1], np.float32).reshape(600, -1).copy()))
            return given

    def party(mesh: LocalMesh) -> None:
        if mesh.me == "shop":
            plan.part(mesh, bottom=layers(0, 10, 8), announce=lambda _: None).fit(x)
        else:
            plan.part(mesh, top=layers(1, 8, 2), loss=cross_entropy, announce=lambda _: None).fit(y=y)

    together(Spy.of(["bank", "shop"]), party)
    order = plan.order(600, 11)
    found = leak(seen[-1], y[torch.from_numpy(order)])
    assert (found > 0.85) if gradients is None else (found < most)


# -- faults


def test_a_lost_party_is_an_error_at_all_and_training_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    plan = SplitLearning(
        bottoms=("a", "b"), middles=("c",), top="bank", batch_size=20, epochs=4, checkpoint_every=2,
        labels=RandomisedResponse(3.0, CLASSES),
    )  # fmt: skip
    straight, broken = Case(plan), Case(plan)
    errors: dict[str, BaseException] = {}

    def dies(mesh: LocalMesh) -> Any:
        part = broken.part(mesh, optimiser=OPTIMISERS["adam"], folder=tmp_path / mesh.me)
        if mesh.me == "b":
            step, count = part._step, iter(range(100))

            def failing(*given: Any) -> float:
                if next(count) == 8:  # in the second epoch, after a checkpoint within it
                    raise OSError("the power went out")
                return step(*given)

            part._step = failing  # type: ignore[method-assign]
        try:
            return part.fit(**broken.data(mesh.me))
        except BaseException as error:
            errors[mesh.me] = error
            raise

    with pytest.raises(OSError, match="the power went out"):
        together(LocalMesh.of(plan.parties), dies)
    assert sorted(errors) == ["a", "b", "bank", "c"]
    assert all(
        isinstance(errors[name], Unreachable) and "party 'b' is gone" in str(errors[name])
        for name in ("a", "bank", "c")
    )

    resumed = Case(plan)

    def again(mesh: LocalMesh) -> Any:
        return resumed.part(mesh, optimiser=OPTIMISERS["adam"], folder=tmp_path / mesh.me).fit(**resumed.data(mesh.me))

    told = together(LocalMesh.of(plan.parties), again)[plan.parties.index("bank")]
    assert [epoch.number for epoch in told] == [1, 2, 3]

    # The same labels, randomised once, without a break: they are in the last checkpoint.
    from hansa.core.checkpoint import open_bytes

    last = sorted((tmp_path / "bank").iterdir())[-1]
    straight.y = torch.from_numpy(np.array(open_bytes(last.read_bytes())[0]["labels/y"]))
    assert not torch.equal(straight.y, resumed.y)
    unbroken = SplitLearning(**{**vars(plan), "labels": None})
    straight.plan = unbroken
    straight.play(OPTIMISERS["adam"])
    one = Whole(straight.bottoms, straight.chain).state_dict()
    two = Whole(resumed.bottoms, resumed.chain).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_checkpoints_of_other_runs_or_of_some_parties_are_refused(tmp_path: Path) -> None:
    plan = SplitLearning(bottoms=("shop",), top="bank", batch_size=30)

    def play(plan: SplitLearning, folders: dict[str, Path]) -> Any:
        case = Case(plan)
        return together(
            LocalMesh.of(plan.parties),
            lambda mesh: case.part(mesh, folder=folders[mesh.me]).fit(**case.data(mesh.me)),
        )

    folders = {name: tmp_path / name for name in plan.parties}
    play(plan, folders)
    with pytest.raises(StateMismatch, match="other settings or rows"):
        play(SplitLearning(**{**vars(plan), "seed": 9}), folders)
    with pytest.raises(StateMismatch, match="no checkpoint .* is held by all: bank .*; shop none"):
        play(plan, folders | {"shop": tmp_path / "new"})
    more = play(SplitLearning(**{**vars(plan), "epochs": 2}), folders)[0]
    assert [epoch.number for epoch in more] == [1]


def test_what_is_sent_is_checked() -> None:
    plan = SplitLearning(bottoms=("shop",), top="bank", batch_size=30)
    case = Case(plan)

    def wide(mesh: LocalMesh) -> Any:
        part = case.part(mesh)
        if mesh.me == "shop":
            part._places[0].module.register_forward_hook(lambda *given: given[2][:-1])
        return part.fit(**case.data(mesh.me))

    with pytest.raises(ProtocolError, match=r"'shop' sent activations of shape \(29, 8\), not \(30, 8\)"):
        together(LocalMesh.of(plan.parties), wide)

    case = Case(plan)

    def infinite(mesh: LocalMesh) -> Any:
        part = case.part(mesh)
        if mesh.me == "shop":
            part._places[0].module.register_forward_hook(lambda *given: given[2] * float("inf"))
        return part.fit(**case.data(mesh.me))

    with pytest.raises(ProtocolError, match="not finite"):
        together(LocalMesh.of(plan.parties), infinite)


def test_a_loss_that_is_not_finite_and_missing_numbers_end_training() -> None:
    plan = SplitLearning(bottoms=("shop", "bank"), top="bank")
    case = Case(plan)

    def party(mesh: LocalMesh) -> Any:
        part = case.part(mesh)
        part._loss = (lambda *given: cross_entropy(*given) * float("nan")) if mesh.me == "bank" else None
        return part.fit(**case.data(mesh.me))

    with pytest.raises((TrainingFailed, ProtocolError)):
        together(LocalMesh.of(plan.parties), party)
    case.features[0][3, 1] = float("nan")
    with pytest.raises(DataError, match="missing or infinite"):
        case.play(OPTIMISERS["sgd"])


def test_halves_are_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    plan = PLANS["folded"]
    case = Case(plan)

    def keep(part: SplitParty) -> Any:
        part.save(tmp_path / f"{part.me}.safetensors")
        return part.predict(case.data(part.me)["x"])

    wanted = case.play(OPTIMISERS["sgd"], keep)[0]
    fresh = Case(plan)

    def take(mesh: LocalMesh) -> Any:
        part = fresh.part(mesh)
        part.load(tmp_path / f"{part.me}.safetensors")
        return part.predict(fresh.data(part.me)["x"])

    assert torch.equal(together(LocalMesh.of(plan.parties), take)[0], wanted)
    cloud = fresh.part(LocalMesh.of(plan.parties)[1])
    with pytest.raises(StateMismatch, match="of other modules"):
        cloud.load(tmp_path / "clinic.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CorruptFile):
        cloud.load(tmp_path / "broken.safetensors")
    safetensors = pytest.importorskip("safetensors.numpy")
    assert "bottom.0.weight" in safetensors.load_file(tmp_path / "clinic.safetensors")


def test_over_tls_halves_become_the_same_and_a_lost_party_is_named(
    identities: Path, parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SplitLearning(bottoms=("clinic", "shop"), top="bank", batch_size=30, micro_batches=2, epochs=2)
    local, remote = Case(plan), Case(plan)
    local.play(OPTIMISERS["adam"])

    def party(mesh: Mesh) -> Any:
        return remote.part(mesh, optimiser=OPTIMISERS["adam"]).fit(**remote.data(mesh.me))

    over_tls(identities, parties, party)
    one, two = Whole(local.bottoms, local.chain).state_dict(), Whole(remote.bottoms, remote.chain).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)

    def dies(mesh: Mesh) -> Any:
        part = remote.part(mesh)
        if mesh.me == "shop":
            monkeypatch.setattr(part, "_epoch", lambda *_: exec('raise StateMismatch("gone")', globals()))
        return part.fit(**remote.data(mesh.me))

    again = Parties.here(parties.names)
    results = dict(zip(NAMES, over_tls(identities, again, dies), strict=True))
    assert all(isinstance(results[name], Unreachable) for name in ("bank", "clinic")), results
    assert "'shop'" in str(results["bank"])


# -- relay


def test_a_relay_trains_what_one_network_would_on_each_clients_rows_in_turn() -> None:
    clients = ("ann", "bob", "eve")
    relay = Relay(clients=clients, server="server", rounds=2, batch_size=16, seed=3)
    data = {name: rows(40 + 8 * at, seed=at) for at, name in enumerate(clients)}
    halves = {name: (layers(at, 10, 8), layers(50 + at, 8, CLASSES)) for at, name in enumerate(clients)}
    middle = layers(30, 8, 8, 8)
    optimiser = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    bottom, top = copy.deepcopy(halves["ann"])
    whole = Whole([bottom], [copy.deepcopy(middle), top])
    at_server = optimiser(whole.chain[0].parameters())
    losses: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(2):
        for name in clients:
            own = optimiser([*whole.bottoms.parameters(), *whole.chain[1].parameters()])

            class Both:
                def step(self, own: Any = own) -> None:
                    own.step(), at_server.step()

                def zero_grad(self) -> None:
                    whole.zero_grad()

            x, y = data[name]
            losses[name] += train_whole(whole, relay.turn(number, name), [x], y, Both())  # type: ignore[arg-type]

    def party(mesh: LocalMesh) -> list[float]:
        quiet: dict[str, Any] = {"optimiser": optimiser, "announce": lambda _: None}
        if mesh.me == "server":
            return relay.fit(mesh, middle=middle, **quiet)
        x, y = data[mesh.me]
        b, t = halves[mesh.me]
        return relay.fit(mesh, bottom=b, top=t, x=x, y=y, loss=cross_entropy, **quiet)

    told = dict(zip((*clients, "server"), together(LocalMesh.of((*clients, "server")), party), strict=True))
    assert told == {**losses, "server": []}
    for name in clients:
        split = Whole([halves[name][0]], [middle, halves[name][1]]).state_dict()
        assert all(torch.equal(value, split[key]) for key, value in whole.state_dict().items()), name


def test_a_relay_says_who_learns_what_and_refuses_what_does_not_fit() -> None:
    relay = Relay(clients=("ann", "bob"), server="server")
    assert "each client" in " ".join(relay.learns()["server"])
    with pytest.raises(ConfigError, match="'ann' is a client: give it bottom and top"):
        relay.fit(LocalMesh.of(["ann", "bob", "server"])[0], bottom=nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="is a client too"):
        Relay(clients=("ann", "bob"), server="bob")
