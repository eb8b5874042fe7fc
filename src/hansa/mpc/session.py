"""A session: the parties of one program, and the two doors of secrecy, `share` and `reveal`.

    with hansa.mpc.connect("parties.toml", identity="bank.pem") as session:
        x = session.share(load_features, owner="bank")       # the loader runs at the bank alone
        y = session.share(load_labels, owner="shop")
        model = session.share_module(nn.Linear(13, 1))
        …                                                     # an ordinary training loop
        weights = session.reveal(model.state_dict(), to="bank")

Every computing party runs the same program. What differs between them (code, settings) is found by a hash before
anything is shared.
"""

import hashlib
import inspect
import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from hansa.core.errors import ConfigError, DataError, ProtocolError, SecretError, TensorMismatch
from hansa.core.runtime import Mesh
from hansa.crypto.identity import Identity
from hansa.mpc import fused, operations
from hansa.mpc.aby3.malicious import MaliciousAby3
from hansa.mpc.files import DTYPES, Entry, Header, ShareFile, joined, load_shares, shared_dtype, shown, write_file
from hansa.mpc.fixed import Engine, Fixed
from hansa.mpc.local_computation import local_computation
from hansa.mpc.operations.dense import Linear
from hansa.mpc.options import check_options
from hansa.mpc.place import Place, all_here
from hansa.mpc.progress import bar
from hansa.mpc.protocols import protocol_named
from hansa.mpc.report import Meter, Opened, Report
from hansa.mpc.ring import FRACTION_BITS, decode, encode
from hansa.mpc.secret import SecretTensor, program_line
from hansa.runtimes.mesh import LocalMesh, Parties, TlsMesh
from hansa.runtimes.mesh.local import together
from hansa.runtimes.mesh.messages import heard, sized

_log = logging.getLogger("hansa.mpc")
_T = TypeVar("_T")

assert operations.__all__  # importing them registers what the tensors can do


class Session:
    """One party's view of a running program.

    Args:
      mesh: links to the other parties.
      protocol: `aby3` (three parties), `pond` (two servers and a dealer, the last by name), `two_party` (no helper) or
        `plain` (one, for writing programs).
      fraction_bits: of all real numbers: their error is 2^−(bits + 1), their largest magnitude 2^(62 − bits).
      sigmoid: `spline` (error below 2e-3), `exact` (3e-4), `five` (0.02) or `three` straight lines (0.38), or
        `chebyshev` (7e-3 for |x| ≤ 8, and without a comparison).
      truncation: `exact`, or `fast` with its stated probability of a wild value.
      security: `semi-honest`, or `malicious`: aby3's arithmetic detects whoever deviates, and refuses the rest.
      report: a file for the report, as JSON, when the session ends.
      device: where this party's shares live: `cpu`, `cuda` or `cuda:N`; of one kind at all parties, as their public
        numbers have to be rounded alike. Secrets have it, what is public is moved to it, and what is revealed is there.
      unsafe_debug: lets `debug` open secrets; only where all parties are here (`hansa.mpc.local`, `hansa mpc local`).
    """

    def __init__(
        self, mesh: Mesh, protocol: str = "aby3", *, fraction_bits: int = FRACTION_BITS, sigmoid: str = "spline",
        truncation: str = "exact", security: str = "semi-honest", report: str | None = None,
        device: str | torch.device = "cpu", unsafe_debug: bool = False,
    ) -> None:  # fmt: skip
        place = check_options(
            protocol, fraction_bits=fraction_bits, sigmoid=sigmoid, truncation=truncation, security=security,
            device=device,
        )  # fmt: skip
        if unsafe_debug:
            _check_here(isinstance(mesh, LocalMesh) or (isinstance(mesh, TlsMesh) and all_here(mesh.identity_file)))
        self.mesh, self.me = mesh, mesh.me
        self.names = tuple(sorted((mesh.me, *mesh.peers)))
        settings = [protocol, fraction_bits, sigmoid, truncation, security, torch.__version__, place.type, unsafe_debug]
        self.agree("settings", json.dumps(settings).encode())
        options = {} if protocol == "plain" else {"truncation": truncation}
        side = MaliciousAby3(mesh) if security == "malicious" else protocol_named(protocol)(mesh, **options)
        side.device = place
        self.meter, self._report, self._debugs = Meter(side, mesh), report, unsafe_debug
        self._engine = Engine(self.meter, fraction_bits, sigmoid, device=place)
        # PyTorch's first operation on any class of tensors imports its distributed ones, for a second: before the work.
        SecretTensor(Fixed.constant(self._engine, torch.zeros(()))).detach()
        self._engine.random.manual_seed(int.from_bytes(self._common_seed()[:7], "little"))

    # -- the two doors

    def share(
        self, load: Any, owner: str, *, dtype: torch.dtype | None = None, shape: Sequence[int] | None = None
    ) -> SecretTensor:
        """Shares what one party has.

        Args:
          load: a tensor, an array, or a callable that gives one; used at the owner alone. The others may pass the same
            callable, or None.
          owner: its name.
          dtype: of the secret; that of the value if None, floats as float32.
          shape: that the owner said it has; None takes any.

        Returns:
          A secret of the value's shape and dtype, which are public.

        Raises:
          DataError: a number is NaN, infinite, or beyond the fixed-point range.
          ProtocolError: another party shares something of another shape, or nothing that can be read.
        """
        if owner not in self.names:
            raise ConfigError(f"owner='{owner}' is no party: choose one of {', '.join(self.names)}.")
        value = code = None
        if owner == self.me:
            value = torch.as_tensor(load() if callable(load) else load)
            wanted = shared_dtype(dtype or (torch.float32 if value.is_floating_point() else value.dtype))
            bits = self._engine.bits if wanted.is_floating_point else 0
            code = self._engine.placed(encode(value, bits, f"the input of '{owner}', shape {tuple(value.shape)},"))
            sizes, name = list(value.shape), str(wanted).removeprefix("torch.")
            for peer in self.mesh.peers:
                self.mesh.send(peer, "shape", [json.dumps([sizes, name]).encode()])
        else:
            sizes, name = heard(self.mesh, owner, "shape", tuple[list[int], str])
        if name not in DTYPES:
            raise DataError(f"'{owner}' shares a tensor of type {name}: use floats, integers or booleans.")
        if shape is not None and sizes != list(shape):
            raise ProtocolError(f"'{owner}' shares a tensor of shape {tuple(sizes)}, and said {tuple(shape)}.")
        self.meter.shared.append(Opened((owner,), tuple(sizes)))
        with self.meter.operation("share"):
            share = self.meter.input(code, sizes, owner)
        bits = self._engine.bits if DTYPES[name].is_floating_point else 0
        return SecretTensor(Fixed(self._engine, share, bits, bits), DTYPES[name])

    def share_module(self, module: torch.nn.Module, owner: str | None = None) -> torch.nn.Module:
        """Makes a module's parameters and buffers secret, in place.

        Args:
          module: the same class and sizes at every party.
          owner: whose values count; None takes those of the first party. Initial values that `connect`'s seed or the
            program's own made are known to all; only training makes them secret.
        """
        whose = owner or self.names[0]
        return self._secret_module(module, lambda _, value: self.share(value, whose))

    def _secret_module(
        self, module: torch.nn.Module, made: Callable[[str, torch.Tensor], SecretTensor]
    ) -> torch.nn.Module:
        """Replaces what a module has learnt by secrets made from its name and value."""
        for prefix, child in module.named_modules():
            path = f"{prefix}." if prefix else ""
            for name, parameter in list(child._parameters.items()):
                if parameter is not None:
                    secret = made(path + name, parameter.detach())
                    child._parameters[name] = torch.nn.Parameter(secret, requires_grad=parameter.requires_grad)
            for name, buffer in list(child._buffers.items()):
                if buffer is not None and buffer.is_floating_point():
                    child._buffers[name] = made(path + name, buffer)
            Linear.adopt(child)
        return module

    def reveal(self, secret: Any, to: str | Sequence[str] | None = None) -> Any:
        """Opens secrets: the only way out, and logged.

        Args:
          secret: a secret tensor, or a mapping or sequence of them.
          to: who learns it: one name, several, or None for all parties.

        Returns:
          The value at those who learn it, None at the others; mappings and sequences alike.
        """
        receivers = self.names if to is None else (to,) if isinstance(to, str) else tuple(to)
        unknown = sorted(set(receivers) - set(self.names))
        if unknown:
            raise ConfigError(f"to={unknown} are no parties: choose from {', '.join(self.names)}.")
        if isinstance(secret, Mapping):
            return {name: self.reveal(each, receivers) for name, each in secret.items()}
        if isinstance(secret, list | tuple):
            return [self.reveal(each, receivers) for each in secret]
        if not isinstance(secret, SecretTensor):
            return secret
        shape, value = tuple(secret.shape), secret.value
        _log.info("revealed to %s: a tensor of shape %s", ", ".join(receivers), shape)
        self.meter.revealed.append(Opened(tuple(receivers), shape))
        if value.public is not None:
            return value.public.to(secret.dtype) if self.me in receivers else None
        with self.meter.operation("reveal"):
            opened = value.open(receivers)
        return None if opened is None else decode(opened, value.home, secret.dtype)

    def local_computation(self, owner: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator: the function runs at one party alone, on ordinary tensors, and gives secrets.

        Args:
          owner: the party. Arguments that are secret are opened to it, as by `reveal`, and listed so in the report;
            others are as they are there.

        Returns:
          A decorator for functions that give a tensor, or a sequence or mapping of names to tensors. All parties call
          what it makes, and get the same of secrets, which the owner shared. No gradient passes through.

        Raises:
          ConfigError: the owner is no party.
        """
        return local_computation(self, owner)

    def debug(self, secret: Any) -> Any:
        """Opens secrets to all parties while a program is being written, with a warning that names the line.

        It works where all parties are here and were told so: `hansa mpc local --unsafe-debug SCRIPT`, or
        `hansa.mpc.local(program, unsafe_debug=True)`. The report lists what was opened among what was revealed.

        Args:
          secret: as in `reveal`.

        Raises:
          SecretError: the session was not told so; always at a party of a network.
        """
        line = program_line()
        if not self._debugs:
            raise SecretError(
                f"session.debug would open a secret to all parties{line}: it works under `hansa mpc local "
                "--unsafe-debug` alone. Take it out, or say with session.reveal who may learn the value."
            )
        known = len(self.meter.revealed)
        opened = self.reveal(secret)
        shapes = ", ".join(str(each.shape) for each in self.meter.revealed[known:]) or "(public already)"
        _log.warning("debug%s: opened to all parties, shape %s", line, shapes)
        return opened

    # -- shares as files

    def load(
        self, url: str | Sequence[str], *, columns: Sequence[str] | None = None, join: str = "rows"
    ) -> "SecretTensor | dict[str, SecretTensor]":
        """Secrets from files of shares, each party's own; see `mpc.files`.

        Args:
          url: where they are; several are tables to be joined.
          columns: only these of a table, in this order.
          join: `rows` below each other, of the same columns; or `columns` beside each other, of the same rows.

        Returns:
          The secret, or name to secret where a file holds several.

        Raises:
          ConfigError: the parties hold files of different sharings, or of another protocol; tables do not fit.
          NotFound, CorruptFile: there is no file, or it is damaged.
        """
        given = [self._stored(each) for each in ([url] if isinstance(url, str) else url)]
        if len(given) == 1 and len(given[0][0]) > 1 and columns is None:
            return given[0][0]
        table: SecretTensor
        table, names = joined(given, join)
        if columns is None:
            return table
        missing = [name for name in columns if name not in names]
        if missing:
            raise ConfigError(f"columns={missing} are not in {url}: it has {', '.join(names) or 'no names'}.")
        chosen: SecretTensor = table[..., [names.index(name) for name in columns]]
        return chosen

    def save(self, secret: Any, url: str, *, columns: Sequence[str] = ()) -> None:
        """Writes secrets as files of shares, each party its own, with fresh randomness.

        Args:
          secret: a secret tensor, or a mapping of names to secret (or public) tensors, as a `state_dict()`.
          url: as in `save_shares`.
          columns: of a single tensor's last dimension.
        """
        if not self.meter.protocol.holdings:
            raise ConfigError(
                f"'{self.meter.protocol.name}' stores no shares: reveal the result, or use a semi-honest session."
            )
        tensors = dict(secret) if isinstance(secret, Mapping) else {"table": secret}
        entries, parts = {}, {}
        at = self.names.index(self.me)
        for name, each in tensors.items():
            value = each.value if isinstance(each, SecretTensor) else Fixed.constant(self._engine, each.detach())
            share = value.share()
            for owner in self.names[:2]:  # a constant's share, or an owner's, is not random: zeros of two others are
                zeros = self._engine.placed(torch.zeros(share.shape, dtype=torch.int64)) if owner == self.me else None
                share = share + self.meter.input(zeros, share.shape, owner)
            dtype = str(shared_dtype(each.dtype)).removeprefix("torch.")
            entries[name] = Entry(tuple(share.shape), dtype, value.home, tuple(columns))
            held = len(self.meter.protocol.holdings[at])
            parts[name] = tuple(part.contiguous().cpu().numpy() for part in share.parts[:held])
        header = Header(self._common_seed().hex(), self.meter.protocol.name, self.names, entries)
        write_file(ShareFile(header, self.me, parts), url)

    def load_module(self, module: torch.nn.Module, url: str) -> torch.nn.Module:
        """Makes a module's parameters and buffers those of files of shares, in place.

        Args:
          module: of the sizes of the one that was shared.
          url: where the shares of its `state_dict()` are.

        Raises:
          TensorMismatch: names or shapes differ.
        """
        stored = self._stored(url)[0]
        own = {name: tuple(each.shape) for name, each in module.state_dict().items()}
        found = {name: tuple(each.shape) for name, each in stored.items()}
        if own != found:
            differ = sorted(name for name in {*own, *found} if own.get(name) != found.get(name))
            raise TensorMismatch(f"{url} holds another model: {', '.join(differ)} differ in name or shape.")
        return self._secret_module(module, lambda name, _: stored[name])

    def _stored(self, url: str) -> tuple[dict[str, SecretTensor], dict[str, tuple[str, ...]]]:
        """The secrets of one file by name, and their columns."""
        file = load_shares(url, self.me)
        header = file.header
        mine = (self.meter.protocol.name, self.names)
        if (header.protocol, header.parties) != mine:
            raise ConfigError(
                f"{shown(url)} holds shares of '{header.protocol}' among {', '.join(header.parties)}, and this session "
                f"is '{mine[0]}' among {', '.join(self.names)}: share the data again."
            )
        self.agree("file of shares", header.digest(), f"give everybody its file of one sharing ({shown(url)})")
        found = {}
        for name, entry in header.tensors.items():
            stored = [torch.from_numpy(part.copy()) for part in file.parts[name]]
            parts = [self._engine.placed(part) for part in stored or [torch.zeros(entry.shape, dtype=torch.int64)]]
            share = self.meter.protocol.held(tuple(parts))
            self.meter.shared.append(Opened(("a file",), tuple(entry.shape)))
            found[name] = SecretTensor(Fixed(self._engine, share, entry.bits, entry.bits), DTYPES[entry.dtype])
        return found, {name: entry.columns for name, entry in header.tensors.items()}

    # -- seeing it

    def report(self) -> Report:
        """What has been computed and sent so far, by operation."""
        return self.meter.report()

    def progress(self, steps: Iterable[_T], description: str = "training") -> Iterable[_T]:
        """The steps of a loop, with a bar on stderr that says how many are done and what they cost.

        The first party alone shows it. `for batch in session.progress(loader): …`
        """
        return bar(steps, self.mesh.counters, description) if self.me == self.names[0] else steps

    def agree(self, what: str, mine: bytes, remedy: str = "run the same program everywhere") -> None:
        """Refuses to go on unless all parties give the same bytes, of which a hash is compared; all call it together.

        Args:
          what: these bytes are, for the error.
          mine: this party's.
          remedy: for the error.

        Raises:
          ConfigError: another party's differ; names it.
        """
        digest = hashlib.sha256(mine).digest()
        for peer, theirs in self.mesh.exchange(what, digest).items():
            if theirs != digest:
                raise ConfigError(f"party '{peer}' has other {what}: {remedy}.")

    @property
    def generator(self) -> torch.Generator:
        """Random numbers that are public and alike at all parties, as for `DataLoader(shuffle=True, generator=…)`."""
        return self._engine.random

    # -- inside

    def _common_seed(self) -> bytes:
        """Random bytes that all parties know, for what is public and must be alike."""
        seed = secrets.token_bytes(16) if self.me == self.names[0] else b""
        if seed:
            for peer in self.mesh.peers:
                self.mesh.send(peer, "seed", [seed])
            return seed
        return sized(self.mesh, self.names[0], "seed", 16)

    def close(self) -> None:
        """Ends the session together with the other parties."""
        self._write_report()
        if isinstance(self.mesh, TlsMesh):
            self.mesh.close()

    def _write_report(self) -> None:
        if self._report is not None:
            Path(self._report).write_text(json.dumps(self.report().to_json()), encoding="utf-8")

    def __enter__(self) -> Self:
        fused.take_apart()
        if self._engine.device.type != "cpu":
            # PyTorch runs backward passes of one GPU in one thread of its own, in which parties of one process would
            # wait for each other for ever.
            torch.autograd.set_multithreading_enabled(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fused.put_back()
        if self._engine.device.type != "cpu":
            torch.autograd.set_multithreading_enabled(True)
        self._write_report()
        if isinstance(self.mesh, TlsMesh):
            self.mesh.__exit__(kind, error, trace)


def connect(
    parties: str | os.PathLike[str] | Parties | None = None, *, identity: str | os.PathLike[str] | None = None,
    protocol: str | None = None, program: str | os.PathLike[str] | None = None, wait_s: float = 60.0,
    stall_s: float = 600.0, **options: Any,
) -> Session:  # fmt: skip
    """A session with the parties of a file, over mutual TLS; without arguments, as `hansa mpc` decided.

    It seeds PyTorch alike at all parties, so that a new module, or a `DataLoader` that shuffles, draws the same
    everywhere: those numbers are public.

    Args:
      parties: the file, or what was read from it; those of them that compute take part.
      identity: this party's identity file, of role `party`.
      protocol: see `Session`; what the command said if None, else aby3.
      program: the file whose content all parties must share, as that of the modules beside it that are imported
        before; the calling script if None.
      wait_s: for the others to come.
      stall_s: that a party which is there may be silent while it is waited for.
      options: of `Session`.

    Raises:
      ConfigError: there are more or fewer parties than the protocol has, or this one does not compute.
      Refused: another party has another program, other settings or another file of parties.
      Unreachable: a party did not come.
      IdentityError: a certificate is not that of the party.
    """
    report, arguments = None, list[str]()
    if parties is None:
        place = Place.current()
        protocol, program, wait_s = protocol or place.protocol, place.script, place.wait_s
        options, report, arguments = {**place.options, **options}, place.report, list(place.arguments)
        if place.parties is None or place.identity is None:
            return Session(LocalMesh.of([place.me])[0], protocol, report=report, **options)
        parties, identity = place.parties, place.identity
    if identity is None:
        raise ConfigError("connect(parties) needs identity=, this party's identity file.")
    if options.get("unsafe_debug"):  # before the others are waited for
        _check_here(all_here(identity))
    known, protocol = parties if isinstance(parties, Parties) else Parties.read(parties), protocol or "aby3"
    computing = computing_parties(known, protocol)
    file = Path(program) if program is not None else Path(sys.argv[0])
    # Of the device only the kind is alike everywhere.
    device = str(check_options(protocol, **{name: options[name] for name in options if name != "unsafe_debug"}))
    options.pop("device", None)
    settings = json.dumps(
        [protocol, sorted(options.items()), device.split(":")[0], known.digest().hex(), arguments]
    ).encode()
    digest = hashlib.sha256(code_of(file) + settings).digest()
    me = Identity.load(str(identity)).name
    if me in known.names and me not in computing.names:
        raise ConfigError(
            f"'{me}' does not compute, by the file of parties: it gives data with `hansa mpc share` and takes results "
            "with `hansa mpc reveal`."
        )
    session = Session(
        TlsMesh(str(identity), computing, digest, wait_s=wait_s, stall_s=stall_s), protocol, report=report,
        device=device, **options,
    )  # fmt: skip
    torch.manual_seed(int(torch.randint(1 << 62, (), generator=session.generator)))
    return session


def code_of(program: Path) -> bytes:
    """A hash of a program and of the modules beside it that are imported by now."""
    if not program.is_file():
        return b""
    folder, files = program.absolute().parent, {program.absolute()}
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        ours = name.split(".")[0] == "hansa" or "site-packages" in file.parts
        if not ours and file.is_file() and file.is_relative_to(folder):
            files.add(file)
    named = [("" if file.name == program.name else str(file.relative_to(folder)), file) for file in sorted(files)]
    pairs = [(name, hashlib.sha256(file.read_bytes()).hexdigest()) for name, file in named]
    return hashlib.sha256(json.dumps(pairs).encode()).digest()


def computing_parties(known: Parties, protocol: str) -> Parties:
    """Those that compute; ConfigError unless they are as many as the protocol has."""
    names, wanted = known.with_role("computing"), protocol_named(protocol).parties
    if len(names) != wanted:
        raise ConfigError(
            f"'{protocol}' is computed by {wanted} parties, and {len(names)} of the file's parties compute "
            f"({', '.join(names)}): give the others roles without 'computing', or choose another protocol."
        )
    return known.only(names)


def local(program: Callable[[Session], _T], protocol: str = "aby3", **options: Any) -> list[_T]:
    """Runs all parties of a program here, as threads, and gives what each returned.

    PyTorch's own generator is one for all threads: what the program draws from it depends on who comes first, even
    after `torch.manual_seed`. Draw before, or from a `torch.Generator` of the program's own.

    Args:
      program: takes the session of its party.
      protocol: see `Session`.
      options: of `Session`.
    """
    side = protocol_named(protocol)
    if len(inspect.signature(program).parameters) != 1:
        raise ConfigError("the program of hansa.mpc.local takes one argument, the session of its party.")
    names = [f"party-{at}" for at in range(side.parties)]

    def party(mesh: LocalMesh) -> _T:
        with Session(mesh, protocol, **options) as session:
            return program(session)

    return together(LocalMesh.of(names), party)


def _check_here(here: bool) -> None:
    """ConfigError unless all parties are here: threads of this process, or processes of one `hansa mpc local`."""
    if not here:
        raise ConfigError(
            "unsafe_debug opens secrets to all parties, and this session is with parties elsewhere: leave it out. It "
            "is for `hansa mpc local --unsafe-debug` and hansa.mpc.local(..., unsafe_debug=True)."
        )
