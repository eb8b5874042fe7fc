"""The federation's certificate authority: a folder with its key, a register of members and a revocation list.

    authority/                   mode 0700; keep it off the server and off the workers
      authority.key.pem          P-256, mode 0600, encrypted if there is a passphrase
      authority.pem              its certificate: public, the root of everybody's trust
      register.json              who has which certificates until when; the only truth, the list below is made from it
      revoked.pem                X.509 revocation list: copy it to the server and the workers after each `revoke`
      members/NAME.pem           identities made here, to be handed over and deleted

There are two ways in. `issue` makes a member's keys here: simple, but the file travels. With `request` → `sign` →
`accept` the member makes its own keys and they never leave it; only the request and the certificates travel, and
neither is secret:

    member$     request("hospital-a", "worker", folder)          hospital-a.pem (keys), hospital-a.request.pem
    authority$  authority.sign(request_pem, name="hospital-a", role="worker")     members/hospital-a.certificates.pem
    member$     accept(folder / "hospital-a.pem", certificates_pem)

A name belongs to one member at a time. Every function takes `now`, so that tests need no clock.
"""

import hashlib
import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.core.errors import IdentityError
from hansa.crypto.certificate import check_authority, check_name, check_role, describe, federation_of, read_authority
from hansa.crypto.identity import Identity, key_pem, parse_keys
from hansa.crypto.private_file import locked, read_private, write_atomically

MEMBER_DAYS = 365
AUTHORITY_DAYS = 3650

_BACKDATED = timedelta(minutes=10)  # members' clocks may be behind the authority's
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_CONNECTS = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH],
    "worker": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "submitter": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "party": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
}
_SIGNS = [ExtendedKeyUsageOID.CODE_SIGNING]

_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, kw_only=True)
class Member:
    """One line of the register: one pair of certificates ever issued. Times: UTC in ISO 8601; serials: hexadecimal."""

    name: str
    role: str
    hosts: tuple[str, ...]
    fingerprint: str
    since: str
    until: str
    serials: tuple[str, str]
    revoked: str | None = None
    certificates: str = field(default="", repr=False)

    def status(self, now: datetime | None = None) -> str:
        """`revoked`, `expired` or `valid`."""
        if self.revoked:
            return "revoked"
        return "expired" if (now or _clock()) > datetime.fromisoformat(self.until) else "valid"


@dataclass(frozen=True)
class Authority:
    """An opened authority; `create` founds one, `load` opens it again."""

    folder: Path
    certificate: x509.Certificate = field(repr=False)
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(
        cls,
        folder: Path,
        federation: str,
        *,
        passphrase: bytes | None = None,
        days: int = AUTHORITY_DAYS,
        now: datetime | None = None,
    ) -> Self:
        """Founds a federation: makes its key, its certificate, an empty register and an empty revocation list.

        Args:
          folder: made if missing; must not hold an authority yet.
          federation: its name, as members and logs will show it; 1 to 64 printable characters.
          passphrase: encrypts the key; None leaves the file's mode as its only protection.
        """
        if not 1 <= len(federation) <= 64 or not federation.isprintable():
            raise IdentityError(f"federation={federation!r} cannot be used: take 1 to 64 printable characters")
        if (folder / "authority.key.pem").exists():
            raise IdentityError(
                f"{folder} already holds an authority: go on with it, or choose an empty folder (--authority DIR)"
            )
        key, moment = ec.generate_private_key(ec.SECP256R1()), now or _clock()
        subject = _subject(federation, "authority", f"{federation} authority"[:64])
        public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _dated(subject, subject, key.public_key(), moment, moment + _lifetime(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(public, critical=False)
            .sign(key, SHA256())
        )
        try:
            (folder / "members").mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise IdentityError(f"{folder} cannot be made ({error.strerror}): choose a writable folder") from None
        authority = cls(folder, certificate, key)
        write_atomically(folder / "authority.pem", authority.pem, mode=0o644)
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        authority._write(_Register(federation), moment)
        write_atomically(folder / "authority.key.pem", secret, mode=0o600)  # last: its presence means all is there
        return authority

    @classmethod
    def load(cls, folder: Path, *, passphrase: bytes | None = None) -> Self:
        """Opens the authority in `folder`; IdentityError if missing, open to others, or the passphrase is wrong."""
        path = folder / "authority.key.pem"
        secret = read_private(path)
        try:
            key = load_pem_private_key(secret, password=passphrase)
        except (ValueError, TypeError):
            raise IdentityError(
                f"{path} cannot be opened with this passphrase: give the one it was made with, or none if it had none"
            ) from None
        try:
            certificate = read_authority((folder / "authority.pem").read_bytes())
        except OSError as error:
            raise IdentityError(f"{folder}/authority.pem cannot be read ({error.strerror}): restore it") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise IdentityError(f"{path} and authority.pem do not belong together: restore both from one backup")
        return cls(folder, certificate, key)

    @property
    def federation(self) -> str:
        """The federation's name."""
        return federation_of(self.certificate)

    @property
    def pem(self) -> bytes:
        """The authority's certificate: public."""
        return self.certificate.public_bytes(Encoding.PEM)

    def members(self) -> list[Member]:
        """The whole register, oldest first; a renewed member has several lines."""
        return self._read().members

    def issue(
        self,
        name: str,
        role: str,
        *,
        hosts: Sequence[str] = (),
        days: int = MEMBER_DAYS,
        now: datetime | None = None,
    ) -> Path:
        """Makes keys and certificates for a new member.

        Args:
          name: free in this federation, capitals apart.
          role: one of `hansa.crypto.identity.ROLES`.
          hosts: DNS names and IP addresses under which peers dial a server or party (which may differ from what it
            binds); others need none.
          days: validity; never beyond the authority's own.

        Returns:
          The path of the identity file, members/NAME.pem, mode 0600: hand it over on a safe way, then delete it here.
        """
        keys = _new_keys()
        certificates = self._admit(name, role, hosts, (keys[0].public_key(), keys[1].public_key()), days, now)
        identity = Identity.parse(key_pem(keys[0]) + key_pem(keys[1]) + certificates)
        return identity.save(self.folder / "members" / f"{name}.pem")

    def sign(
        self,
        request: bytes,
        *,
        name: str,
        role: str,
        hosts: Sequence[str] = (),
        days: int = MEMBER_DAYS,
        now: datetime | None = None,
    ) -> Path:
        """Certifies the keys of a member that made them itself.

        `name` and `role` are what you agreed with the member on another channel, and must be the request's; compare the
        fingerprint (`request_fingerprint`) on that channel too.

        Returns:
          The path of members/NAME.certificates.pem, which is not secret: send it back.
        """
        wanted_name, wanted_role, keys = _read_request(request)
        if (wanted_name, wanted_role) != (name, role):
            raise IdentityError(
                f"request is for {wanted_name!r} as {wanted_role}, not for {name!r} as {role}: "
                "ask the member which is right before signing"
            )
        certificates = self._admit(name, role, hosts, keys, days, now)
        return write_atomically(self.folder / "members" / f"{name}.certificates.pem", certificates, mode=0o644)

    def renew(
        self,
        member: str | Path,
        *,
        hosts: Sequence[str] | None = None,
        days: int = MEMBER_DAYS,
        now: datetime | None = None,
    ) -> Path:
        """Gives a member's same keys new certificates; the old ones end on their own date.

        Args:
          member: a name (str), or the path of an identity file (Path), which is rewritten in place.
          hosts: None keeps those of before.

        Returns:
          The rewritten identity file; or, for a name whose keys are not here, members/NAME.certificates.pem for the
          member's `accept`.
        """
        path = member if isinstance(member, Path) else self.folder / "members" / f"{check_name(member)}.pem"
        identity = Identity.parse(read_private(path), source=str(path)) if path.exists() else None
        if identity is None and isinstance(member, Path):
            raise IdentityError(f"{path} does not exist: give an identity file or a member's name")
        if identity is not None and identity.authority != self.certificate:
            raise IdentityError(f"{path} belongs to another federation: renew it with that federation's authority")
        name, moment = (identity.name if identity else str(member)), now or _clock()
        with locked(self.folder / ".lock"):
            register = self._read()
            last = register.last(name)
            if last.revoked:
                raise IdentityError(f"member {name!r} was revoked on {last.revoked}: issue a new identity instead")
            if identity is not None and identity.fingerprint != last.fingerprint:
                raise IdentityError(
                    f"{path} holds older keys than the register of {name!r}: renew the member's new file"
                )
            pair = x509.load_pem_x509_certificates(last.certificates.encode())
            keys = _public_pair([certificate.public_key() for certificate in pair[:2]])
            entry = self._certify(name, last.role, last.hosts if hosts is None else hosts, keys, days, moment)
            register.members.append(entry)
            self._write(register, moment)
        certificates = entry.certificates.encode()
        if identity is not None:
            secret = key_pem(identity.tls_key) + key_pem(identity.signing_key)
            return Identity.parse(secret + certificates).save(path)
        return write_atomically(path.with_name(f"{name}.certificates.pem"), certificates, mode=0o644)

    def revoke(self, member: str | int, *, now: datetime | None = None) -> Path:
        """Puts a member on the revocation list for good; doing it again writes the list again.

        Args:
          member: a name (all its certificates, renewals included) or one serial number (the pair it belongs to).

        Returns:
          The path of revoked.pem: it takes effect where it is copied to.
        """
        moment = now or _clock()
        with locked(self.folder / ".lock"):
            register = self._read()
            if isinstance(member, int):
                hit = [m for m in register.members if f"{member:x}" in m.serials]
            else:
                hit = [m for m in register.members if m.name == member]
            if not hit:
                what = f"serial {member:x}" if isinstance(member, int) else f"member {member!r}"
                raise IdentityError(f"{what} is not in the register of {self.federation!r}: see the list of members")
            register.members[:] = [
                replace(m, revoked=m.revoked or _text(moment)) if m in hit else m for m in register.members
            ]
            self._write(register, moment)
        return self.folder / "revoked.pem"

    def _admit(
        self,
        name: str,
        role: str,
        hosts: Sequence[str],
        keys: tuple[_PublicKey, _PublicKey],
        days: int,
        now: datetime | None,
    ) -> bytes:
        """Enters a new member into the register; its certificates and the authority's, PEM."""
        moment = now or _clock()
        with locked(self.folder / ".lock"):
            register = self._read()
            taken = [
                m for m in register.members if m.name.casefold() == name.casefold() and m.status(moment) == "valid"
            ]
            if taken:
                raise IdentityError(
                    f"name={name!r} is taken by a {taken[-1].role} until {taken[-1].until}: renew that member, "
                    "revoke it first, or choose another name"
                )
            entry = self._certify(name, role, hosts, keys, days, moment)
            register.members.append(entry)
            self._write(register, moment)  # before any file leaves: no certificate is unknown to the register
        return entry.certificates.encode()

    def _certify(
        self,
        name: str,
        role: str,
        hosts: Sequence[str],
        keys: tuple[_PublicKey, _PublicKey],
        days: int,
        moment: datetime,
    ) -> Member:
        """Signs the pair of certificates."""
        fault = check_authority(self.certificate, moment)
        if fault is not None:
            raise IdentityError(fault)
        subject = _subject(self.federation, check_role(role), check_name(name))
        names = _general_names(role, hosts)
        until = min(moment + _lifetime(days), self.certificate.not_valid_after_utc)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        pair = []
        for key, usages in zip(keys, (_CONNECTS[role], _SIGNS), strict=True):
            builder = (
                _dated(self.certificate.subject, subject, key, moment, until)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(_usage(digital_signature=True), critical=True)
                .add_extension(x509.ExtendedKeyUsage(usages), critical=usages is _SIGNS)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
                .add_extension(issuer_key, critical=False)
            )
            if names and usages is not _SIGNS:
                builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            pair.append(builder.sign(self.key, SHA256()))
        return Member(
            name=name,
            role=role,
            hosts=tuple(hosts),
            fingerprint=describe(pair[0]).fingerprint,
            since=_text(moment),
            until=_text(pair[0].not_valid_after_utc),
            serials=(f"{pair[0].serial_number:x}", f"{pair[1].serial_number:x}"),
            certificates="".join(c.public_bytes(Encoding.PEM).decode() for c in (*pair, self.certificate)),
        )

    def _read(self) -> "_Register":
        """The register as it is on disk."""
        path = self.folder / "register.json"
        try:
            fields = json.loads(path.read_bytes())
            lists_to_tuples = (
                {**m, "hosts": tuple(m["hosts"]), "serials": tuple(m["serials"])} for m in fields["members"]
            )
            members = [Member(**line) for line in lists_to_tuples]
            return _Register(fields["federation"], members, int(fields["lists"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise IdentityError(f"{path} cannot be read: restore it from a backup") from None

    def _write(self, register: "_Register", moment: datetime) -> None:
        """Writes the register, then the revocation list made from it: a crash between the two is mended by the next."""
        register.lists += 1
        fields = {
            "federation": register.federation,
            "lists": register.lists,
            "members": [asdict(member) for member in register.members],
        }
        content = json.dumps(fields, indent=1, ensure_ascii=False).encode()
        write_atomically(self.folder / "register.json", content, mode=0o600)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(moment - _BACKDATED)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(register.lists), critical=False)
            .add_extension(issuer_key, critical=False)
        )
        for member in register.members:
            if member.revoked:
                for serial in member.serials:
                    entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16))
                    builder = builder.add_revoked_certificate(
                        entry.revocation_date(datetime.fromisoformat(member.revoked)).build()
                    )
        crl = builder.sign(self.key, SHA256())
        write_atomically(self.folder / "revoked.pem", crl.public_bytes(Encoding.PEM), mode=0o644)


@dataclass
class _Register:
    """What register.json holds; `lists` counts the revocation lists."""

    federation: str
    members: list[Member] = field(default_factory=list)
    lists: int = 0

    def last(self, name: str) -> Member:
        """The newest line of a name."""
        found = [member for member in self.members if member.name == name]
        if not found:
            raise IdentityError(
                f"member {name!r} is not in the register of {self.federation!r}: issue an identity first"
            )
        return found[-1]


def request(name: str, role: str, folder: Path) -> tuple[Path, Path]:
    """Makes a member's own keys, on the member's machine.

    Returns:
      NAME.pem (the private keys, mode 0600: stays; `accept` completes it) and NAME.request.pem (to the authority; not
      secret). Each request is signed with the key it is for, so nobody can have another's key certified.
    """
    path = folder / f"{check_name(name)}.pem"
    if path.exists():
        raise IdentityError(f"{path} exists already and may hold keys in use: move it away or choose another folder")
    keys = _new_keys()
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject("", check_role(role), name))
    requests = builder.sign(keys[0], SHA256()), builder.sign(keys[1], None)
    write_atomically(path, key_pem(keys[0]) + key_pem(keys[1]), mode=0o600)
    content = b"".join(csr.public_bytes(Encoding.PEM) for csr in requests)
    return path, write_atomically(folder / f"{name}.request.pem", content, mode=0o644)


def request_fingerprint(request: bytes) -> str:
    """The fingerprint that the member will have: both sides compare it before the authority signs."""
    return _fingerprint(_read_request(request)[2][0])


def accept(path: Path, certificates: bytes) -> Identity:
    """Completes (or renews) the member's key file `path` with the certificates that the authority sent.

    Raises:
      IdentityError: they are not for these keys; the file is left as it was.
    """
    secret = read_private(path)
    tls_key, signing_key = parse_keys(secret, str(path))
    identity = Identity.parse(
        key_pem(tls_key) + key_pem(signing_key) + certificates, source=f"{path} with certificates"
    )
    if b"BEGIN CERTIFICATE" in secret and Identity.parse(secret, source=str(path)).authority != identity.authority:
        raise IdentityError(f"certificates for {path} are of another authority: check who sent them")
    identity.save(path)
    return identity


def _read_request(pem: bytes) -> tuple[str, str, tuple[_PublicKey, _PublicKey]]:
    """Name, role and public keys of a request, each of which its own key has signed."""
    end = b"-----END CERTIFICATE REQUEST-----\n"
    try:
        requests = [x509.load_pem_x509_csr(block + end) for block in pem.split(end)[:-1]]
        if len(requests) != 2 or requests[0].subject != requests[1].subject:
            raise ValueError
        if not all(csr.is_signature_valid for csr in requests):
            raise ValueError
        keys = _public_pair([csr.public_key() for csr in requests])
        role, name = (
            str(requests[0].subject.get_attributes_for_oid(oid)[0].value)
            for oid in (NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME)
        )
    except Exception:  # a stranger's bytes; the library has many errors here
        raise IdentityError("request cannot be read or was changed: let the member make a new one") from None
    return check_name(name), check_role(role), keys


def _public_pair(keys: Sequence[object]) -> tuple[_PublicKey, _PublicKey]:
    """A P-256 key and an Ed25519 key, in this order."""
    tls, signing = keys
    if not isinstance(tls, ec.EllipticCurvePublicKey) or not isinstance(signing, ed25519.Ed25519PublicKey):
        raise ValueError("not a P-256 and an Ed25519 key")
    if not isinstance(tls.curve, ec.SECP256R1):
        raise ValueError("not a P-256 key")
    return tls, signing


def _new_keys() -> tuple[ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey]:
    return ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()


def _subject(federation: str, role: str, name: str) -> x509.Name:
    """O, OU, CN; a request does not know its federation."""
    organisation = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation)] if federation else []
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)
    return x509.Name([*organisation, unit, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _dated(
    issuer: x509.Name, subject: x509.Name, key: _PublicKey, moment: datetime, until: datetime
) -> x509.CertificateBuilder:
    """A certificate to be, with a random serial number of 159 bits."""
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _BACKDATED)
        .not_valid_after(until)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    """What a key may do; all else is forbidden."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(role: str, hosts: Sequence[str]) -> list[x509.GeneralName]:
    """DNS names and IP addresses under which a listening member is dialled."""
    listens = ExtendedKeyUsageOID.SERVER_AUTH in _CONNECTS[role]
    if listens and not hosts:
        raise IdentityError(
            f"role={role!r} listens and has no hosts: give the DNS names or IP addresses peers will dial (--host NAME)"
        )
    if hosts and not listens:
        raise IdentityError(f"role={role!r} never listens, hosts={list(hosts)} are of no use: leave them out")
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if not _DNS_NAME.fullmatch(host) or host.rsplit(".", 1)[-1].isdigit():
                raise IdentityError(
                    f"host={host!r} is neither a DNS name nor an IP address: write it without port, in ASCII"
                ) from None
            names.append(x509.DNSName(host))
        else:
            if address.is_unspecified:
                raise IdentityError(f"host={host!r} is an address to bind, not to dial: give what peers will dial")
            names.append(x509.IPAddress(address))
    return names


def _lifetime(days: int) -> timedelta:
    """A validity of at least a day and at most a century."""
    if not 1 <= days <= 36500:
        raise IdentityError(f"days={days} is no validity: choose 1 to 36500")
    return timedelta(days=days)


def _fingerprint(key: _PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _clock() -> datetime:
    return datetime.now(UTC)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
