"""Who a member is: one private file with two keys, both certified by the federation's authority.

    hospital-a.pem  (mode 0600)
      P-256 key    and its certificate (client or server authentication)   speaks TLS; gRPC refuses Ed25519 leaves
      Ed25519 key  and its certificate (code signing)                      signs jobs and messages
      the authority's certificate                                          the only issuer this member believes

Nothing here prints a private key: not `repr`, not an error.
"""

import base64
import functools
import json
import os
import re
from collections.abc import Collection, Container
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hansa.core.errors import IdentityError
from hansa.crypto.certificate import (
    MALFORMED,
    ROLES,
    Peer,
    Revoked,
    check_authority,
    check_peer,
    describe,
    federation_of,
    is_authority,
    is_for_signatures,
    issued_by,
    peer_of,
    read_authority,
)
from hansa.crypto.private_file import read_private, write_atomically

__all__ = ["ROLES", "Identity", "Peer", "Revoked", "Signature", "check_peer", "peer_of", "verify"]

_T = TypeVar("_T")
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s.+?-----END \1-----", re.DOTALL)
_DOMAIN = b"hansa signature 1\0"  # no signature of ours can be taken for another program's
_MAX_SIGNATURE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Signature:
    """An Ed25519 signature (64 bytes) with the certificate (DER) of whoever claims to have made it."""

    value: bytes
    certificate: bytes = field(repr=False)

    @property
    def claimed_signer(self) -> Peer:
        """The signer by the certificate's own word: to be shown, never to be believed; `verify` decides."""
        return describe(x509.load_der_x509_certificate(self.certificate))

    def dump(self) -> bytes:
        """Canonical JSON: equal signatures give equal bytes."""
        fields = {name: base64.b64encode(value).decode() for name, value in vars(self).items()}
        return json.dumps(fields, sort_keys=True, indent=1).encode()

    @classmethod
    def load(cls, dumped: bytes) -> Self:
        """Reads what `dump` wrote; anything else, garbage from a network included, is an IdentityError."""
        try:
            if len(dumped) > _MAX_SIGNATURE_BYTES:
                raise ValueError
            fields = json.loads(dumped)
            signature = cls(**{name: base64.b64decode(text, validate=True) for name, text in fields.items()})
            x509.load_der_x509_certificate(signature.certificate)
            if len(signature.value) != 64 or signature.dump() != dumped:
                raise ValueError
        except (*MALFORMED, AttributeError, RecursionError):
            raise IdentityError(f"signature of {len(dumped)} bytes cannot be read: have it signed again") from None
        return signature


@dataclass(frozen=True)
class Identity:
    """A member's own keys and certificates; `Identity.load(path)` is the way to one."""

    tls_key: ec.EllipticCurvePrivateKey = field(repr=False)
    signing_key: ed25519.Ed25519PrivateKey = field(repr=False)
    tls_certificate: x509.Certificate = field(repr=False)
    signing_certificate: x509.Certificate = field(repr=False)
    authority: x509.Certificate = field(repr=False)
    peer: Peer  # what others learn of this member from its TLS certificate

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, now: datetime | None = None) -> Self:
        """Reads an identity file that is private to its owner and valid at `now` (default: this machine's clock).

        Raises:
          IdentityError: missing, usable by others, damaged, incomplete, expired or not valid yet; says which.
        """
        identity = cls.parse(read_private(Path(path)), source=str(path))
        identity.check_valid(now)
        return identity

    @classmethod
    def parse(cls, pem: bytes, *, source: str = "identity") -> Self:
        """Reads the content of an identity file, of any date; its keys and certificates must belong together.

        Raises:
          IdentityError: something is missing, damaged or another member's; the message begins with `source`.
        """
        tls_key, signing_key = parse_keys(pem, source)
        try:
            certificates = [x509.load_pem_x509_certificate(block) for block in _blocks(pem, b"CERTIFICATE")]
            holders = [certificate.public_key() for certificate in certificates]
        except MALFORMED:
            raise IdentityError(f"{source} holds a damaged certificate: copy the file again") from None

        def certificate_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, what: str) -> x509.Certificate:
            public = key.public_key()
            return _only([c for c, holder in zip(certificates, holders, strict=True) if holder == public], what, source)

        authority = _only([c for c in certificates if is_authority(c)], "authority's certificate", source)
        tls = certificate_of(tls_key, "certificate for its TLS key")
        signing = certificate_of(signing_key, "certificate for its signing key")
        if not issued_by(tls, authority) or not issued_by(signing, authority):
            raise IdentityError(
                f"{source} holds a certificate that the authority of {federation_of(authority)!r} did not issue: "
                "ask that authority for a new identity"
            )
        if tls.subject != signing.subject or is_for_signatures(tls) or not is_for_signatures(signing):
            raise IdentityError(f"{source} mixes certificates of two members or uses: ask the authority for a new one")
        return cls(tls_key, signing_key, tls, signing, authority, describe(tls))

    @property
    def name(self) -> str:
        """The member's name, unique in its federation."""
        return self.peer.name

    @property
    def role(self) -> str:
        """One of ROLES."""
        return self.peer.role

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public TLS key in hexadecimal; renewal leaves it as it is."""
        return self.peer.fingerprint

    @property
    def expires(self) -> datetime:
        """When the first of the certificates ends."""
        certificates = (self.tls_certificate, self.signing_certificate, self.authority)
        return min(certificate.not_valid_after_utc for certificate in certificates)

    @property
    def tls_key_pem(self) -> bytes:
        """The private TLS key, for the credentials of gRPC or ssl alone: never log it."""
        return key_pem(self.tls_key)

    @property
    def tls_certificate_pem(self) -> bytes:
        """The certificate to show to peers."""
        return self.tls_certificate.public_bytes(Encoding.PEM)

    @property
    def authority_pem(self) -> bytes:
        """The only root to trust."""
        return self.authority.public_bytes(Encoding.PEM)

    def check_valid(self, now: datetime | None = None) -> None:
        """Raises IdentityError with the remedy unless all certificates are valid at `now`."""
        fault = (
            check_peer(self.peer, now=now)
            or check_peer(describe(self.signing_certificate), now=now)
            or check_authority(self.authority, now)
        )
        if fault is not None:
            raise IdentityError(fault)

    def sign(self, content: bytes, *, purpose: str = "message") -> Signature:
        """Signs `content` for one `purpose`; the signature holds for no other purpose and no other content.

        It says nothing of time: content that must not be accepted twice holds a nonce of its reader.
        """
        value = self.signing_key.sign(_signed_bytes(content, purpose))
        return Signature(value, self.signing_certificate.public_bytes(Encoding.DER))

    def dump(self) -> bytes:
        """The content of the identity file, private keys included; the TLS pair comes first, as `ssl` wants it."""
        certificates = (self.tls_certificate, self.signing_certificate, self.authority)
        keys = key_pem(self.tls_key) + key_pem(self.signing_key)
        return keys + b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the identity file with mode 0600; an older one is replaced whole or not at all."""
        return write_atomically(Path(path), self.dump(), mode=0o600)


def verify(
    signature: Signature,
    content: bytes,
    authority: bytes,
    *,
    role: str | Collection[str] | None = None,
    revoked: Container[int] = (),
    purpose: str = "message",
    now: datetime | None = None,
) -> str:
    """Who signed `content`, on the word of `authority`.

    Args:
      signature: as it came, from anyone.
      authority: the federation's certificate, PEM.
      role: the role the signer must have, or several to choose from; None takes any.
      revoked: serial numbers to refuse; see `Revoked.read`.
      purpose: what `Identity.sign` was told.
      now: default this machine's clock.

    Returns:
      The signer's name.

    Raises:
      IdentityError: the signer is unknown to the authority, expired, revoked or of another role, or the signature does
        not belong to this content; the message says which.
    """
    signer, key, issuer = _certified(signature.certificate, authority)
    fault = check_peer(signer, role, revoked, now=now) or check_authority(issuer, now)
    if fault is not None:
        raise IdentityError(fault)
    try:
        key.verify(signature.value, _signed_bytes(content, purpose))
    except InvalidSignature:
        raise IdentityError(
            f"signature of {signer.name!r} does not belong to this content: it was changed after signing, or the "
            "signature was copied from something else; have it signed again"
        ) from None
    return signer.name


@functools.lru_cache(maxsize=4096)  # in secure sums each member hears from many others, twice a round
def _certified(certificate: bytes, authority: bytes) -> tuple[Peer, ed25519.Ed25519PublicKey, x509.Certificate]:
    """Whom a certificate for signatures names, their key, and the issuer; dates and revocation are not looked at."""
    issuer = read_authority(authority)
    try:
        parsed = x509.load_der_x509_certificate(certificate)
    except MALFORMED:
        raise IdentityError("signer's certificate cannot be read: have the content signed again") from None
    if not issued_by(parsed, issuer):
        raise IdentityError(
            f"signer is unknown to the authority of {federation_of(issuer)!r}: "
            "sign with an identity that this federation enrolled"
        )
    key = parsed.public_key()
    if not is_for_signatures(parsed) or not isinstance(key, ed25519.Ed25519PublicKey):
        raise IdentityError("signer's certificate is for connections, not for signatures: sign with `Identity.sign`")
    return describe(parsed), key, issuer


def key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """A private key as unencrypted PKCS#8 PEM: for 0600 files and credentials alone."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_keys(pem: bytes, source: str) -> tuple[ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey]:
    """The TLS key and the signing key in `pem`, which holds one of each or is an IdentityError."""
    try:
        keys = [load_pem_private_key(block, password=None) for block in _blocks(pem, b"PRIVATE KEY")]
    except Exception:  # the library has many errors here, and none of them is for a log
        raise IdentityError(f"{source} holds a damaged private key: copy the file again") from None
    tls = [key for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)]
    signing = [key for key in keys if isinstance(key, ed25519.Ed25519PrivateKey)]
    return _only(tls, "P-256 TLS key", source), _only(signing, "Ed25519 signing key", source)


def _blocks(pem: bytes, kind: bytes) -> list[bytes]:
    """The PEM blocks of one kind, in order."""
    return [block[0] + b"\n" for block in _PEM_BLOCK.finditer(pem) if block[1] == kind]


def _only(found: list[_T], what: str, source: str) -> _T:
    """The one element of `found`."""
    if len(found) != 1:
        raise IdentityError(
            f"{source} holds {len(found)} of what it needs one of, the {what}: give a file made by `hansa enrol`"
        )
    return found[0]


def _signed_bytes(content: bytes, purpose: str) -> bytes:
    """What is really signed; a purpose cannot run into the content, for it holds no zero byte."""
    if "\0" in purpose:
        raise ValueError(f"purpose={purpose!r} holds a zero byte: use plain words")
    return _DOMAIN + purpose.encode() + b"\0" + content
