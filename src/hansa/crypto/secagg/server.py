"""The server's half: it adds masked vectors as they come, and takes the masks away when all is agreed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hansa.core.errors import HansaError, ProtocolError
from hansa.core.pipeline import Seat
from hansa.crypto import shamir
from hansa.crypto.agreement import KeyPair
from hansa.crypto.masking import KEY_BYTES, add_masks
from hansa.crypto.secagg.terms import SEALED_BYTES, SECRET_BYTES, SHARE_LIMBS, Advert, Roster, Terms, void

_OWN = shamir.limbs(bytes(KEY_BYTES))


class Server:
    """The server in one conversation of one group; its methods take one message each, and close one leg each.

    `add_…` raise a HansaError for a message that must not count; its sender is then out. What closes a leg raises
    SecretRoundVoid below the threshold.
    """

    def __init__(self, terms: Terms, seat: Seat) -> None:
        self._terms, self._seat = terms, seat
        self._adverts: dict[str, Advert] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}  # receiver -> sender -> sealed shares
        self._sum = terms.fields.zeros()
        self._added: set[int] = set()
        self._signatures: dict[int, bytes] = {}
        self._revealed: dict[int, np.ndarray] = {}
        self.roster: Roster

    # -- leg 0

    def add_advert(self, name: str, raw: bytes) -> None:
        """A client's keys."""
        advert = Advert.load(raw)
        self._seat.verify(name, advert.content, advert.signature)
        self._adverts[name] = advert

    def close_adverts(self, names: Sequence[str]) -> Mapping[str, tuple[Roster, dict[int, bytes]]]:
        """The roster, and to each client the signed keys of its neighbours."""
        listed = tuple(name for name in names if name in self._adverts)
        digests = b"".join(self._adverts[name].digest for name in listed)
        self.roster = Roster(listed, digests, self._terms.degree, self._seat.context)
        if len(listed) < self._terms.fewest:
            raise void(f"{len(listed)} clients are here, and {self._terms.fewest} are the fewest that hide each other")
        self._places = {name: at for at, name in enumerate(listed)}
        self._graph = self.roster.graph()
        return {
            name: (self.roster, {near: self._adverts[listed[near]].dump() for near in self._graph[at]})
            for at, name in enumerate(listed)
        }

    # -- leg 1

    def add_shares(self, name: str, sealed: Sequence[bytes]) -> None:
        """What a client sealed for its neighbours."""
        at = self._places[name]
        if len(sealed) != len(self._graph[at]) or any(len(each) != SEALED_BYTES for each in sealed):
            raise ProtocolError(
                f"{len(sealed)} sealed shares for {len(self._graph[at])} neighbours, or of a wrong size."
            )
        for near, each in zip(self._graph[at], sealed, strict=True):
            self._sealed.setdefault(near, {})[at] = each

    def close_shares(self, names: Sequence[str]) -> Mapping[str, dict[int, bytes]]:
        """To each client what its neighbours sealed for it."""
        self._sharers = {self._places[name] for name in names}
        return {
            name: {at: sealed for at, sealed in self._sealed.get(self._places[name], {}).items() if at in self._sharers}
            for name in names
        }

    # -- leg 2

    def add_masked(self, name: str, packed: np.ndarray) -> None:
        """A masked vector."""
        self._terms.fields.add_packed(self._sum, packed)
        self._added.add(self._places[name])

    def close_masked(self, names: Sequence[str]) -> list[int]:
        """Who masked, by place."""
        self._masked = sorted(self._places[name] for name in names)
        if set(self._masked) != self._added:
            raise ProtocolError("a vector was added whose sender is not among the survivors.")
        if len(self._masked) < self._terms.fewest:
            raise void(
                f"{len(self._masked)} clients masked, and {self._terms.fewest} are the fewest that hide each other"
            )
        for at in self._masked:
            holders = [near for near in self._graph[at] if near in self._added]
            self._enough(at, 1 + len(holders))
        for at in self._sharers - self._added:
            self._enough(at, sum(near in self._added for near in self._graph[at]))
        return self._masked

    # -- leg 3

    def add_agreement(self, name: str, signature: bytes) -> None:
        """A client's signature on who masked."""
        self._seat.verify(name, self.roster.agreed(self._masked), signature)
        self._signatures[self._places[name]] = signature

    def close_agreements(self, names: Sequence[str]) -> Mapping[str, dict[int, bytes]]:
        """To each client its neighbours' signatures."""
        signed = {self._places[name] for name in names}
        return {
            name: {near: self._signatures[near] for near in self._graph[self._places[name]] if near in signed}
            for name in names
        }

    # -- leg 4

    def add_revealed(self, name: str, shares: np.ndarray) -> None:
        """A client's shares of its neighbours' secrets and its own."""
        at = self._places[name]
        wanted = (len(self._graph[at]) + 1, SHARE_LIMBS - _OWN)
        if shares.shape != wanted or shares.dtype != np.uint32 or int(shares.max(initial=0)) >= shamir.PRIME:
            raise ProtocolError(
                f"revealed shares of shape {shares.shape}, where {wanted} were to come, or no residues."
            )
        self._revealed[at] = shares

    def total(self) -> list[np.ndarray]:
        """The sum of the contributions of all that masked, as residues modulo each run's 2^bits."""
        masked, purpose = set(self._masked), b"mask\0" + self._seat.context
        masks = [(self._secret(at, KEY_BYTES, self._is_own_key), -1) for at in self._masked]
        for at in sorted(self._sharers - masked):
            pair = KeyPair.of(self._secret(at, SECRET_BYTES, self._is_mask_key))
            for near in self._graph[at]:
                if near in masked:
                    # The survivor added this mask if it comes first in the roster.
                    masks.append((pair.agree(self._advert(near).mask, purpose, KEY_BYTES), -1 if near < at else 1))
        add_masks(self._sum, masks)
        bits = self._terms.fields.bits
        return [run & run.dtype.type((1 << each) - 1) for run, each in zip(self._sum, bits, strict=True)]

    # -- inside

    def _advert(self, at: int) -> Advert:
        return self._adverts[self.roster.names[at]]

    def _is_own_key(self, at: int, secret: bytes) -> bool:
        return hashlib.sha256(secret).digest() == self._advert(at).commitment

    def _is_mask_key(self, at: int, secret: bytes) -> bool:
        return KeyPair.of(secret).public == self._advert(at).mask

    def _needed(self, at: int) -> int:
        return self._terms.needed(len(self._graph[at]) + 1)

    def _enough(self, at: int, holders: int) -> None:
        if holders < self._needed(at):
            raise void(
                f"{holders} holders of the secrets of '{self.roster.names[at]}' are left of {self._needed(at)} needed"
            )

    def _secret(self, at: int, length: int, fits: Callable[[int, bytes], bool]) -> bytes:
        """A client's secret from the shares that its holders revealed; void unless it is the one it advertised."""
        holders = [*self._graph[at], at]
        rows, places = [], []
        for place, holder in enumerate(holders):
            if (shares := self._revealed.get(holder)) is not None:
                row = len(shares) - 1 if holder == at else self._graph[holder].index(at)
                rows.append(shares[row, : shamir.limbs(bytes(length))])
                places.append(place)
        needed = self._needed(at)
        self._enough(at, len(rows))
        # A wrong share shows against what was advertised: then other holders are asked, one left out after another.
        for skip in range(len(rows) - needed + 1):
            chosen = slice(skip, skip + needed)
            try:
                secret = shamir.combine(np.stack(rows[chosen]), places[chosen], length)
            except HansaError:
                continue
            if fits(at, secret):
                return secret
        raise void(f"the shares of the secrets of '{self.roster.names[at]}' do not fit what it advertised")
