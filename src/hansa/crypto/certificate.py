"""What a certificate says of a member, and whether to believe it.

The subject is O = federation, OU = role, CN = name. Chains have length one: whatever the federation's authority did not
sign itself is foreign. A member has two certificates with disjoint extended key usages, so that one for signatures
opens no connection and one for connections signs no job.
"""

import hashlib
import re
from collections.abc import Collection, Container
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.core.errors import IdentityError

ROLES = ("server", "worker", "submitter", "party")

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# All that the cryptography library raises on certificates that strangers made up; its warnings, where they are errors.
MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    CryptographyDeprecationWarning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class Peer:
    """The holder of a certificate, by the certificate's word. The fingerprint is the SHA-256 of the public key:
    it survives renewal.
    """

    name: str
    role: str
    federation: str
    serial: int
    fingerprint: str
    starts: datetime
    expires: datetime


@dataclass(frozen=True)
class Revoked:
    """The authority's revocation list: `serial in revoked`. A greater `number` is a later list."""

    serials: frozenset[int] = frozenset()
    number: int = 0

    def __contains__(self, serial: object) -> bool:
        return serial in self.serials

    @classmethod
    def read(cls, pem: bytes, authority: bytes) -> Self:
        """Reads a revocation list (X.509 CRL, PEM) signed by `authority` (its certificate, PEM).

        Raises:
          IdentityError: it cannot be read, or another key signed it. Stop then: to go on without a list would let the
            revoked in again.
        """
        issuer = read_authority(authority)
        key = issuer.public_key()
        try:
            crl = x509.load_pem_x509_crl(pem)
            genuine = isinstance(key, ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)
            number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            serials = frozenset(entry.serial_number for entry in crl)
        except (*MALFORMED, x509.ExtensionNotFound):
            raise IdentityError("revocation list cannot be read: copy revoked.pem from the authority again") from None
        if not genuine:
            raise IdentityError(
                f"revocation list is not signed by the authority of {federation_of(issuer)!r}: "
                "copy revoked.pem from this federation's authority"
            )
        return cls(serials, number)


def peer_of(certificate: bytes) -> Peer:
    """The member behind a TLS certificate (PEM, as in gRPC's `auth_context()["x509_pem_cert"][0]`).

    TLS must already have checked the certificate against the authority; `check_peer` then says whether it may come in.

    Raises:
      IdentityError: it cannot be read, or is not a member's TLS certificate.
    """
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
    except MALFORMED:
        raise IdentityError("peer's certificate cannot be read: enrol the peer with `hansa enrol`") from None
    if is_authority(parsed) or is_for_signatures(parsed):
        raise IdentityError("peer's certificate is not for connections: use an identity made by `hansa enrol`")
    return describe(parsed)


def check_peer(
    peer: Peer,
    role: str | Collection[str] | None = None,
    revoked: Container[int] = (),
    *,
    now: datetime | None = None,
) -> str | None:
    """Why `peer` is refused, as a sentence for both sides' logs; None when it may come in.

    Args:
      role: one role, several to choose from, or None for any.
      revoked: serial numbers to refuse. Ask again on a long connection: TLS looked only at its start.
      now: default this machine's clock.
    """
    if peer.serial in revoked:
        return f"identity {peer.name!r} is revoked (serial {peer.serial:x}): ask the authority for a new one"
    fault = _time_fault(peer.name, peer.starts, peer.expires, now)
    if fault is not None:
        return fault
    wanted = ROLES if role is None else (role,) if isinstance(role, str) else tuple(role)
    if peer.role not in wanted:
        return (
            f"identity {peer.name!r} is enrolled as {peer.role}, not as {' or '.join(wanted)}: "
            f"use an identity that `hansa enrol` made for that role"
        )
    return None


def check_authority(authority: x509.Certificate, now: datetime | None = None) -> str | None:
    """Why the authority itself cannot vouch at `now`; None when it can."""
    name = f"authority of {federation_of(authority)}"
    return _time_fault(name, authority.not_valid_before_utc, authority.not_valid_after_utc, now)


def check_name(name: str) -> str:
    """`name` itself if a member can have it: up to 63 ASCII letters, digits, `.`, `_`, `-`; so a safe file name."""
    if not _NAME.fullmatch(name):
        raise IdentityError(
            f"name={name!r} cannot be used: take 1 to 63 letters, digits, '.', '_', '-', a letter or digit at each end"
        )
    return name


def check_role(role: str) -> str:
    """`role` itself if there is such a role."""
    if role not in ROLES:
        raise IdentityError(f"role={role!r} does not exist: choose one of {', '.join(ROLES)}")
    return role


def read_authority(pem: bytes) -> x509.Certificate:
    """The authority's certificate; a member's, or none at all, is an IdentityError."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except MALFORMED:
        raise IdentityError("authority's certificate cannot be read: copy authority.pem again") from None
    if not is_authority(certificate):
        raise IdentityError("certificate given as the authority's is not one: copy authority.pem instead")
    return certificate


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether `authority` itself signed this member's certificate."""
    return _signed_by(certificate, authority) and not _may_issue(certificate)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate is an authority's, whole and signed by its own key."""
    return _may_issue(certificate) and _signed_by(certificate, certificate)


def _may_issue(certificate: x509.Certificate) -> bool:
    """Whether the certificate claims to be an authority's."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (*MALFORMED, x509.ExtensionNotFound):
        return False


def is_for_signatures(certificate: x509.Certificate) -> bool:
    """Whether the certificate is a member's for signatures; a member's other one is for connections."""
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (*MALFORMED, x509.ExtensionNotFound):
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in usages


def describe(certificate: x509.Certificate) -> Peer:
    """The member a certificate names, believed or not."""
    try:
        name, role, federation = (
            str(certificate.subject.get_attributes_for_oid(oid)[0].value)
            for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME)
        )
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if not _NAME.fullmatch(name) or role not in ROLES:
            raise ValueError
    except (*MALFORMED, IndexError):
        raise IdentityError("certificate names no member and role of a federation: enrol with `hansa enrol`") from None
    return Peer(
        name=name,
        role=role,
        federation=federation,
        serial=certificate.serial_number,
        fingerprint=hashlib.sha256(key).hexdigest(),
        starts=certificate.not_valid_before_utc,
        expires=certificate.not_valid_after_utc,
    )


def federation_of(authority: x509.Certificate) -> str:
    """The federation's name in its authority's certificate."""
    try:
        return str(authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
    except (*MALFORMED, IndexError):
        return "a federation without name"


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the certificate names `issuer` as its issuer and bears its signature."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def _time_fault(name: str, starts: datetime, expires: datetime, now: datetime | None) -> str | None:
    """Why something with these dates is not valid at `now`."""
    moment = now or datetime.now(UTC)
    if moment > expires:
        return f"identity {name!r} expired on {expires:%Y-%m-%d %H:%M} UTC: run `hansa enrol renew`"
    if moment < starts:
        return f"identity {name!r} is not valid before {starts:%Y-%m-%d %H:%M} UTC: set this machine's clock"
    return None
