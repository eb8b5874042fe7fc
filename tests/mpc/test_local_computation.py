"""Computations at one party: the published example of a model owner and data owners, and what the others learn."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hansa.core.errors import ConfigError, ProtocolError
from hansa.mpc import SecretTensor, Session, local
from hansa.mpc.local_computation import _shared
from hansa.runtimes.mesh.local import LocalMesh, together

ITERATIONS, LR = 5, 0.5
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 6))
LABELS = [torch.from_numpy(RNG.integers(0, 3, 40)) for _ in range(3)]
DATA = [torch.from_numpy(CENTRES[y] + RNG.normal(size=(40, 6))).float() for y in LABELS]


def gradients(owner: int, weights: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
    w, b = weights.clone().requires_grad_(), bias.clone().requires_grad_()
    return list(torch.autograd.grad(F.cross_entropy(DATA[owner] @ w + b, LABELS[owner]), (w, b)))


class ModelOwner:
    """Has the model; learns mean gradients, and nothing else."""

    def __init__(self, player_name: str) -> None:
        self.player_name = player_name
        self.weights, self.bias = torch.zeros(6, 3), torch.zeros(3)

    def update(self, *means: torch.Tensor) -> None:
        self.weights, self.bias = (p - LR * g for p, g in zip((self.weights, self.bias), means, strict=True))


class DataOwner:
    """Has data; computes gradients of the model that it is given."""

    def __init__(self, player_name: str, at: int) -> None:
        self.player_name, self.at, self.ran_at = player_name, at, set[str]()

    def compute_gradient(self, session: Session, weights: SecretTensor, bias: SecretTensor) -> list[SecretTensor]:
        @session.local_computation(self.player_name)
        def run(weights: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
            self.ran_at.add(session.me)
            return gradients(self.at, weights, bias)

        return run(weights, bias)


def test_a_model_owner_trains_on_mean_gradients_of_three_data_owners_as_in_the_clear() -> None:
    owners = [DataOwner(f"party-{at}", at) for at in range(3)]

    def program(session: Session) -> Any:
        model_owner, learnt = ModelOwner("party-0"), []
        for _ in range(ITERATIONS):
            weights = session.share(lambda: model_owner.weights, owner=model_owner.player_name, dtype=torch.float32)
            bias = session.share(lambda: model_owner.bias, owner=model_owner.player_name, dtype=torch.float32)
            model_grads = zip(*(each.compute_gradient(session, weights, bias) for each in owners), strict=True)
            aggregated = [sum(grads) / len(grads) for grads in model_grads]  # type: ignore[arg-type]
            means = session.reveal(aggregated, to=model_owner.player_name)
            if session.me == model_owner.player_name:
                learnt.append(means)
                model_owner.update(*means)
        return learnt, model_owner, session.report()

    results = local(program)
    plain = ModelOwner("nobody")
    for at in range(ITERATIONS):
        means = [
            sum(each) / 3 for each in zip(*(gradients(i, plain.weights, plain.bias) for i in range(3)), strict=True)
        ]
        for got, wanted in zip(results[0][0][at], means, strict=True):
            assert (got - wanted).abs().max() < 16 * 2**-16  # inputs, a product by a third, and the model's own share
        plain.update(*means)  # type: ignore[arg-type]
    assert torch.allclose(results[0][1].weights, plain.weights, atol=1e-3)
    assert [each.ran_at for each in owners] == [{"party-0"}, {"party-1"}, {"party-2"}]
    assert results[1][0] == results[2][0] == []
    revealed = [each.parties for each in results[1][2].revealed]
    # Each iteration: the model to each data owner, the means to the model owner; no gradient to anybody.
    once = [("party-0",)] * 2 + [("party-1",)] * 2 + [("party-2",)] * 2 + [("party-0",)] * 2
    assert revealed == once * ITERATIONS


def test_results_keep_their_form_and_public_arguments_stay_public() -> None:
    def program(session: Session) -> Any:
        @session.local_computation("party-1")
        def one(x: torch.Tensor, factor: int) -> torch.Tensor:
            """Doubles."""
            return x * factor

        @session.local_computation("party-1")
        def named(x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": x.sum(), "many": (x > 1).long()}

        @session.local_computation("party-2")
        def several() -> tuple[torch.Tensor, ...]:
            return torch.ones(2, 3), torch.zeros(0)

        x = session.share(torch.tensor([1.0, 2.5]), "party-0")
        assert one.__doc__ == "Doubles."
        found = [one(x, 2), named(x), several()]
        assert isinstance(found[0], SecretTensor) and found[1]["many"].dtype == torch.int64
        return session.reveal(found)

    for doubled, by_name, many in local(program):
        assert doubled.tolist() == [2.0, 5.0]
        assert by_name["sum"].item() == 3.5 and by_name["many"].tolist() == [0, 1]
        assert [tuple(each.shape) for each in many] == [(2, 3), (0,)]


def test_another_owner_or_form_of_results_is_an_error() -> None:
    def program(session: Session) -> None:
        with pytest.raises(ConfigError, match="owner='bank' is no party"):
            session.local_computation("bank")

    local(program, "plain")
    lies = [b'["one", ["", ""]]', b'["tree", []]', b'["list", 3]', b"{"]

    def party(mesh: LocalMesh) -> None:
        with Session(mesh) as session:
            for lie in lies:
                if session.me == "party-0":
                    for peer in mesh.peers:
                        mesh.send(peer, "results", [lie])
                else:
                    with pytest.raises(ProtocolError, match="'party-0'"):
                        _shared(session, "party-0", None)

    together(LocalMesh.of([f"party-{at}" for at in range(3)]), party)
