"""Truncation is right on average: what is lost in one direction at each step adds up over a training."""

import pytest
import torch
from tests.mpc.test_protocols import PROTOCOLS, play, ring

from hansa.mpc import local
from hansa.mpc.session import Session


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("shift", [3, 16])
def test_truncation_is_right_on_average(kind: str, shift: int) -> None:
    x = ring(6, 20_000, bits=40)
    error = play(kind, lambda p, given: p.truncate(given(x), shift)).double() - x.double() / 2**shift
    assert abs(float(error.mean())) < 0.15 and float(error.abs().max()) < 2


@pytest.mark.parametrize("protocol", ["aby3", "pond", "two_party"])
def test_what_is_smaller_than_a_unit_is_not_lost(protocol: str) -> None:
    """A thousand quarters of a unit are 250 units where they are rounded at random, and not 0 or 1,000."""

    def program(session: Session) -> torch.Tensor:
        small = session.share(torch.full((1000,), 2.0**-9), owner=session.names[0])
        return session.reveal((small * small).sum())  # 2⁻¹⁸ each, in units of 2⁻¹⁶

    opened = local(program, protocol)[0]
    assert opened is not None
    assert 0.6 * 1000 * 2.0**-18 < float(opened) < 1.4 * 1000 * 2.0**-18
