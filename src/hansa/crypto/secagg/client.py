"""The client's half: it believes nobody but the holders of keys that were signed in this conversation."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from hansa.core.errors import ProtocolError
from hansa.core.pipeline import Seat
from hansa.crypto import shamir
from hansa.crypto.agreement import KeyPair, seal, unseal
from hansa.crypto.claims import verify_all
from hansa.crypto.masking import KEY_BYTES, add_masks
from hansa.crypto.secagg.terms import SHARE_LIMBS, Advert, Roster, Terms, void

_OWN = shamir.limbs(bytes(KEY_BYTES))


class Client:
    """One client in one conversation; its methods are its legs, each called once and in order.

    Args:
      terms: as bound.
      seat: who it is, and where its randomness comes from.

    Raises (all methods):
      SecretRoundVoid: going on could reveal more than a sum.
      ProtocolError, IdentityError: a message is malformed, or not of whom it says.
    """

    def __init__(self, terms: Terms, seat: Seat) -> None:
        self._terms, self._seat = terms, seat
        self._mask, self._channel = KeyPair.new(seat.entropy), KeyPair.new(seat.entropy)
        self._own = seat.entropy(KEY_BYTES)
        self._adverts: dict[int, Advert] = {}
        self._keys: dict[int, bytes] = {}  # of the channels to neighbours, until they are no longer needed
        self._held: dict[int, np.ndarray] = {}  # neighbour -> shares of its secrets
        self._masked: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"Client({self._seat.name!r})"

    # -- leg 0

    def advertise(self) -> bytes:
        """Its keys, signed."""
        advert = Advert(self._mask.public, self._channel.public, hashlib.sha256(self._own).digest())
        return Advert(advert.mask, advert.channel, advert.commitment, self._seat.sign(advert.content)).dump()

    # -- leg 1

    def share(self, roster: Roster, adverts: Mapping[int, bytes]) -> list[bytes]:
        """For each neighbour, in order, shares of this client's secrets that only that neighbour can open."""
        if roster.context != self._seat.context or self._seat.name not in roster.names:
            raise ProtocolError("the roster is of another conversation, or does not name this client.")
        self._enough(len(roster.names))
        self._roster, self._me = roster, roster.names.index(self._seat.name)
        mine = Advert(self._mask.public, self._channel.public, hashlib.sha256(self._own).digest())
        if roster.digest_of(self._me) != mine.digest:
            raise ProtocolError("the roster has other keys for this client than it advertised.")
        self._neighbours = roster.neighbours(self._me)
        if sorted(adverts) != self._neighbours:
            raise ProtocolError("the adverts are not those of this client's neighbours.")
        heard = {at: Advert.load(adverts[at]) for at in self._neighbours}
        for at, advert in heard.items():
            if advert.digest != roster.digest_of(at):
                raise ProtocolError(f"the keys of '{roster.names[at]}' are not those on the roster.")
        verify_all(self._seat, [(roster.names[at], each.content, each.signature) for at, each in heard.items()])
        self._adverts = heard
        holders = [*self._neighbours, self._me]
        self._needed = self._terms.needed(len(holders))
        if len(holders) < 3 or self._needed < 2:
            raise void(f"{len(holders)} clients would hold each secret, and a sum of so few hides nobody")
        entropy = self._seat.entropy
        rows = np.hstack(
            [shamir.split(secret, len(holders), self._needed, entropy) for secret in (self._own, self._mask.secret)]
        )
        self._held[self._me] = rows[-1]
        return [
            seal(self._key(at), rows[row].astype("<u4").tobytes(), self._between(self._me, at), entropy)
            for row, at in enumerate(self._neighbours)
        ]

    # -- leg 2

    def mask(self, sealed: Mapping[int, bytes], runs: Sequence[np.ndarray]) -> np.ndarray:
        """The contribution, masked and packed.

        Args:
          sealed: what neighbours sealed for this client; those that are missing dropped out.
          runs: the contribution's residues, in words of `Fields.zeros`; changed in place.
        """
        for at, message in sealed.items():
            if at not in self._adverts:
                raise ProtocolError("a share came from somebody who is no neighbour.")
            raw = unseal(self._key(at), message, self._between(at, self._me))
            shares = np.frombuffer(raw, "<u4")
            if len(shares) != SHARE_LIMBS or int(shares.max(initial=0)) >= shamir.PRIME:
                raise ProtocolError(f"'{self._roster.names[at]}' sealed a malformed share.")
            self._held[at] = shares
        if len(self._held) < self._needed:
            raise void(f"{len(self._held)} holders are left, {self._needed} are needed to finish")
        self._sharers = frozenset(self._held)
        self._keys.clear()
        purpose, masks = b"mask\0" + self._seat.context, [(self._own, 1)]
        for at in sorted(self._sharers - {self._me}):
            masks.append((self._mask.agree(self._adverts[at].mask, purpose, KEY_BYTES), 1 if self._me < at else -1))
        add_masks(runs, masks)
        return self._terms.fields.pack(runs)

    # -- leg 3

    def agree(self, masked: Sequence[int]) -> bytes:
        """Its signature on who masked, once for this conversation, whatever the server says later."""
        listed = tuple(masked)
        if list(listed) != sorted(set(listed)) or not all(0 <= at < len(self._roster.names) for at in listed):
            raise ProtocolError("the list of survivors is malformed.")
        if self._me not in listed:
            raise ProtocolError("the list of survivors leaves this client out, which masked.")
        self._enough(len(listed))
        near = [at for at in listed if at in self._neighbours]
        if any(at not in self._sharers for at in near):
            raise void("the list of survivors names a neighbour that had dropped out before")
        if 1 + len(near) < self._needed:
            raise void(f"{1 + len(near)} holders masked, {self._needed} are needed to finish")
        content = self._roster.agreed(listed)
        self._seat.once("survivors of a secure sum", content)
        self._masked = listed
        return self._seat.sign(content)

    # -- leg 4

    def unmask(self, signatures: Mapping[int, bytes]) -> np.ndarray:
        """Of each holder-mate's secrets the one share that may be known.

        Args:
          signatures: of neighbours, on the same list.

        Returns:
          Shape (neighbours + 1, limbs of the longer secret), uint32, in the order of the neighbours and then itself:
          of those that masked a share of the self-mask's key, of those that shared but did not mask one of the mask
          key, zeros of others.
        """
        content = self._roster.agreed(self._masked)
        if any(at not in self._neighbours or at not in self._masked for at in signatures):
            raise ProtocolError("a signature came from somebody who is no surviving neighbour.")
        verify_all(self._seat, [(self._roster.names[at], content, signature) for at, signature in signatures.items()])
        agreed = 1 + len(signatures)
        if agreed < self._needed:
            raise void(f"{agreed} holders agree on who is alive, {self._needed} are needed")
        out = np.zeros((len(self._neighbours) + 1, SHARE_LIMBS - _OWN), np.uint32)
        for row, at in enumerate([*self._neighbours, self._me]):
            if at in self._held:
                shares = self._held[at]
                known = shares[:_OWN] if at in self._masked else shares[_OWN:]
                out[row, : len(known)] = known
        self._held.clear()  # a second list would find nothing here
        return out

    # -- inside

    def _enough(self, named: int) -> None:
        if named < self._terms.fewest:
            raise void(f"{named} clients are named, and no round has fewer than {self._terms.fewest}")

    def _key(self, at: int) -> bytes:
        if at not in self._keys:
            self._keys[at] = self._channel.agree(self._adverts[at].channel, b"channel\0" + self._seat.context)
        return self._keys[at]

    def _between(self, sender: int, receiver: int) -> bytes:
        return b"share\0" + self._roster.seed + sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")
