"""A secret leaves by `reveal` alone: whatever else would read or lose it is an error, or does what PyTorch does."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hansa.core.errors import DataError, SecretError
from hansa.mpc.protocol import Protocol
from hansa.mpc.protocols import PROTOCOLS
from hansa.mpc.session import Session, local

A = torch.tensor([[1.5, -2.0, 0.5, -0.25], [3.0, 4.0, 0.0, -1.0]])
PLACES = torch.tensor([[0, 1], [1, 0]])

READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "an array": np.asarray,
    "an array of elements": lambda x: np.array([x[0, 0], x[0, 1]]),
    "dlpack": np.from_dlpack,
    "a pickle": pickle.dumps,
    "a copy of its bytes": copy.copy,
    "torch.save": lambda x: torch.save({"x": x}, io.BytesIO()),
    "a function of each value": lambda x: x.apply_(lambda each: each),
    "a function of two values": lambda x: x.map_(A, lambda one, _: one),
    "shared memory": lambda x: x.share_memory_(),
    "membership": lambda x: 1.5 in x,
    "the largest of a list": lambda x: max(x[0]),
    "equality": lambda x: torch.equal(x, A),
    "closeness": lambda x: torch.allclose(x, A),
    "places": lambda x: (x > 0).nonzero(),
    "a mask of a public tensor": lambda x: A[x > 0],
    "a mask of itself": lambda x: x[x > 0],
    "a secret index": lambda x: x[(x[0] > 0).long()],
    "different values": lambda x: x.unique(),
    "a size": lambda x: torch.arange(x[0, 0]),
    "a public sum": lambda x: torch.zeros(2, 4).add_(x),
    "a public copy": lambda x: torch.zeros(2, 4).copy_(x),
    "a public element": lambda x: torch.zeros(2, 4).__setitem__(0, x[0]),
    "a public result": lambda x: torch.add(x, x, out=torch.zeros(2, 4)),
    "whole numbers": lambda x: x.long(),
}


@pytest.mark.parametrize("what", READS)
def test_what_would_read_or_lose_a_secret_is_an_error(what: str) -> None:
    def program(session: Session) -> None:
        secret = session.share(A, session.names[0])
        with pytest.raises(SecretError):
            READS[what](secret)
        assert not session.report().revealed

    local(program, "plain")


def test_nothing_that_shows_an_object_shows_a_number() -> None:
    def program(session: Session) -> None:
        secret = session.share(torch.full((2, 2), 12345.0), session.names[0])
        shown = f"{secret} {secret:.3f} {secret!r} {[secret]} {vars(secret)} {secret.value} {secret.value.share()}"
        with pytest.raises(SecretError) as error:
            secret.tolist()
        assert "12345" not in shown + str(error.value) and str(12345 << 16) not in shown

    local(program, "plain")


@pytest.mark.parametrize("protocol", ["aby3", "pond", "two_party"])
def test_a_training_opens_nothing_but_what_is_revealed(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    side = PROTOCOLS[protocol]
    real = side.open

    def counted(self: Protocol, share: Any, to: Any = None) -> Any:
        opened.append(tuple(share.shape))
        return real(self, share, to)

    monkeypatch.setattr(side, "open", counted)

    def program(session: Session) -> None:
        torch.manual_seed(0)
        x, y = session.share(A, session.names[0]), session.share(torch.tensor([0, 1]), session.names[1])
        model = session.share_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2)))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.1, foreach=False)
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        model(x).sort(1).values.topk(1).values.sigmoid()
        session.reveal(model(x).argmax(1), to=session.names[0])

    local(program, protocol)
    assert opened == [(2,)] * PROTOCOLS[protocol].parties


def changed(function: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The whole of a tensor of which a part was changed in place."""

    def run(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        function(y)
        return y

    return run


def data_step(x: torch.Tensor) -> torch.Tensor:
    p = nn.Parameter(x.clone())
    (p * p).sum().backward()
    assert p.grad is not None
    p.data -= 0.5 * p.grad
    return p.detach()


def clipped(x: torch.Tensor) -> torch.Tensor:
    p = nn.Parameter(x.clone())
    (p * p).sum().backward()
    nn.utils.clip_grad_norm_([p], 1.0)
    assert p.grad is not None
    return p.grad


def through_a_change(x: torch.Tensor) -> torch.Tensor:
    p = x.clone().requires_grad_()
    y = p * 2
    y[0] = 0
    y[1, 1:3].mul_(3)
    (y * y).sum().backward()
    assert p.grad is not None
    return p.grad


SAME: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a row set": changed(lambda y: y.__setitem__(0, 1.5)),
    "a slice set": changed(lambda y: y.__setitem__((slice(None), slice(1, 3)), y[:, :2].clone())),
    "places set": changed(lambda y: y.__setitem__((PLACES[1], 3 * PLACES[0]), torch.tensor([7.0, 8]))),
    "places added": changed(lambda y: y.index_put_((torch.tensor([1, 1]),), torch.tensor(2.0), accumulate=True)),
    "a secret condition": changed(lambda y: y.__setitem__(y > 0, 2.0)),
    "a row cleared": changed(lambda y: y[0].zero_()),
    "a transposed one changed": changed(lambda y: y.t()[1:3].mul_(2)),
    "a detached one changed": changed(lambda y: y.detach().add_(1)),
    "data stepped": data_step,
    "gradients clipped": clipped,
    "gradients through a change": through_a_change,
    "a count": lambda x: (x > 0).sum(),
    "counts": lambda x: (x > 0).sum(1) + (x > 1).count_nonzero(),
    "a running count": lambda x: (x > 0).cumsum(1),
    "any and all": lambda x: (x > 3).any(1) & (x > -3).all(1),
    "either": lambda x: (x > 0) ^ (x > 1),
    "not nothing": lambda x: x.bool(),
    "padded": lambda x: F.pad(x, (1, 2), value=3.0),
    "smallest": lambda x: x.min() + x.amin(0).sum() + x.min(1).values,
    "where the smallest is": lambda x: x[:, :2].argmin(1),
    "softplus": lambda x: F.softplus(x),
    "elu": lambda x: F.elu(x),
    "logsumexp": lambda x: x.logsumexp(1),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "by large whole numbers": lambda x: x * 3_000_000_000,
}  # fmt: skip


@pytest.mark.parametrize("what", SAME)
def test_changes_in_place_and_whole_numbers_are_pytorchs(what: str) -> None:
    def program(session: Session) -> Any:
        return session.reveal(SAME[what](session.share(A, session.names[0])))

    got, wanted = local(program, "plain")[0], SAME[what](A.clone()).detach()
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert float((got.double() - wanted.double()).abs().max()) <= 1e-2


def test_whole_numbers_open_exactly_and_those_beyond_the_range_are_refused() -> None:
    whole = torch.tensor([2**61 + 5, -(2**61) - 7, 0, 3])

    def program(session: Session) -> Any:
        for beyond in (torch.tensor([-(2**63)]), torch.tensor([2**62]), torch.tensor([1 + 2j])):
            with pytest.raises(DataError, match=r"the input of 'party-0', shape \(1,\), holds"):
                session.share(beyond, "party-0")
        return session.reveal(session.share(whole, "party-0"))

    assert torch.equal(local(program, "plain")[0], whole)


BEYOND: dict[str, Callable[[torch.Tensor], Any]] = {
    "mul": lambda x: x * math.nan,
    "mul ": lambda x: x * 1e30,
    "mul  ": lambda x: x * torch.full((4,), 1e30),
    "add": lambda x: x + 1e30,
    "sub": lambda x: x - torch.tensor(math.nan),
    "div": lambda x: x / 0,
    "mm": lambda x: x @ torch.full((4, 1), 1e30),
    "where": lambda x: torch.where(x > 0, x, math.nan),
}


@pytest.mark.parametrize("operation", BEYOND)
def test_a_public_number_beyond_the_range_is_named_with_its_operation_and_line(operation: str) -> None:
    def program(session: Session) -> None:
        wanted = rf"'{operation.strip()}' of a secret at .*test_no_way_out.py:\d+ .*holds"
        with pytest.raises(DataError, match=wanted):
            BEYOND[operation](session.share(A, session.names[0]))

    local(program, "plain")
