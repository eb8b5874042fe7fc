"""Links from party to party over mutual TLS 1.3: blocking sockets, one connection for each direction.

    dialer ── hello: version, digest of parties, session ──► listener
           ◄── welcome, or the reason why not ──────────────
           ── frames: kind, tag, buffers ──────────────────►

A connection is written by its dialer alone and read by its listener alone, so that one thread may send while another
receives, which a TLS connection itself does not allow. Small messages go out at once; large ones are handed to a thread
for each peer, so that two parties may send to each other at the same time and compute meanwhile.

A party that dies closes its connections; whoever sees it first says its name to the others before it goes itself, so
that every party's error names the one that was lost.
"""

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ConfigError, HansaError, IdentityError, ProtocolError, Refused, Unreachable
from hansa.core.runtime import Counters, Mesh
from hansa.crypto.certificate import Revoked, check_peer, peer_of
from hansa.crypto.identity import Identity
from hansa.runtimes.mesh.parties import Parties

_HELLO = struct.Struct("<8s32s32s")
_MAGIC = b"HNSMESH1"
_FRAME = struct.Struct("<BBHQ")  # kind, length of the tag, number of buffers, bytes of what follows
_DATA, _BYE, _LOST = range(3)
_SMALL = 1 << 16
_PIECE = 1 << 20
_AHEAD = 1 << 14  # what TLS gives at once, at most
_LARGEST = 1 << 36
_GRACE_S = 1.0  # how long a party that saw another one leave listens for who was lost before it
_FAREWELL_S = 5.0


class TlsMesh(Mesh):
    """This party's links to all others; a context that ends together with theirs.

    Args:
      identity: this party's identity file; its name is that of one of the parties.
      parties: the same at every party.
      session: 32 bytes that all parties share for this session and no other: of its program and settings.
      wait_s: how long to wait for the others to come.
      stall_s: how long a party that is connected may send nothing while it is waited for.
      revoked: certificates to refuse.

    Raises:
      Unreachable: a party did not come in time; later: it was lost, or stalled.
      Refused: a party has another file of parties, another program or another session.
      IdentityError: a certificate of another federation, role or name.
    """

    def __init__(
        self, identity: str | Path, parties: Parties, session: bytes = bytes(32), *, wait_s: float = 60.0,
        stall_s: float = 600.0, revoked: Revoked | None = None,
    ) -> None:  # fmt: skip
        self._identity, self.identity_file, self._parties = Identity.load(identity), str(identity), parties
        self.me = self._identity.name
        self.peers = tuple(name for name in parties.names if name != self.me)
        if self.me not in parties.names:
            raise ConfigError(f"'{self.me}', whose identity this is, is not among the parties {parties.names}.")
        if len(session) != 32:
            raise ConfigError(f"session has {len(session)} bytes: a SHA-256 digest of program and settings has 32.")
        self.counters, self._session, self._stall_s = Counters(), session, stall_s
        self._revoked = revoked or Revoked()
        self._out: dict[str, _Out] = {}
        self._in: dict[str, _In] = {}
        self._fault: HansaError | None = None
        self._mutex = threading.Lock()
        self._over = False
        self._closing = threading.Event()
        self._spoke = True
        self._meet(wait_s)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="mesh watcher")
        self._watcher.start()

    # -- as a mesh

    def send(self, to: str, tag: str, buffers: Sequence[Buffer]) -> None:
        """Sends buffers, which must not change afterwards: large ones leave while the caller goes on."""
        views = [memoryview(each).cast("B") for each in buffers]
        size = sum(map(len, views))
        self.counters.sent_bytes[to] = self.counters.sent_bytes.get(to, 0) + size
        self._spoke = True
        try:
            self._out[to].write(_frame(_DATA, tag, views), views, size)
        except OSError as error:
            raise self._broken(to, error) from None

    def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> list[Buffer]:
        """The next buffers of another party."""
        link = self._in[sender]
        try:
            kind, given, buffers = link.read(self._stall_s if deadline_s is None else deadline_s)
        except TimeoutError:
            waited = self._stall_s if deadline_s is None else deadline_s
            raise self._fail(Unreachable(f"party '{sender}' sent nothing for {waited:g} s ('{tag}').")) from None
        except OSError as error:
            raise self._broken(sender, error) from None
        if kind == _LOST:
            raise self._fail(_lost(given))
        if kind == _BYE:
            raise self._fail(ProtocolError(f"party '{sender}' ended where '{tag}' was expected: the programs differ."))
        if given != tag:
            fault = f"party '{sender}' sent '{given}' where '{tag}' was expected: the programs differ."
            raise self._fail(ProtocolError(fault))
        size = sum(map(len, buffers))
        self.counters.received_bytes[sender] = self.counters.received_bytes.get(sender, 0) + size
        self.counters.rounds += self._spoke
        self._spoke = False
        return buffers

    # -- beginning

    def _meet(self, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        host, port = self._parties[self.me].endpoint
        try:
            listener = socket.create_server((host, port), family=_family(host), backlog=len(self.peers) + 4)
        except OSError as error:
            address = self._parties[self.me].address
            raise ConfigError(
                f"'{self.me}' cannot listen at {address} ({error.strerror}): its address in the file of parties is one "
                "of this machine, and each party has its own."
            ) from None
        waiting = threading.Thread(target=self._accept, args=(listener, until), daemon=True)
        waiting.start()
        try:
            for peer in self.peers:
                self._out[peer] = _Out(self._dial(peer, until))
            waiting.join(max(0.0, until - time.monotonic()) + 1.0)
            missing = [peer for peer in self.peers if peer not in self._in]
            if self._fault is not None:
                raise self._fault
            if missing:
                raise Unreachable(f"parties {missing} did not come within {wait_s:g} s: start them, or wait longer.")
        except BaseException:
            self._shut()
            raise
        finally:
            with suppress(OSError):  # wakes whoever still accepts, which would keep the address
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            waiting.join(1.0)

    def _dial(self, peer: str, until: float) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the name in the certificate is the party's, and is compared below
        self._trust(context)
        endpoint = self._parties[peer].endpoint
        while True:
            try:
                raw = socket.create_connection(endpoint, timeout=max(0.1, until - time.monotonic()))
                break
            except OSError as error:
                if self._fault is not None:
                    raise self._fault from None
                if time.monotonic() > until:
                    address = self._parties[peer].address
                    raise Unreachable(f"party '{peer}' does not answer at {address}: {error}.") from None
                time.sleep(0.05)
        link: socket.socket = raw
        try:
            link = wrapped = context.wrap_socket(_tuned(raw), server_hostname=peer)
            self._check(wrapped, peer)
            wrapped.sendall(_HELLO.pack(_MAGIC, self._parties.digest(), self._session))
            answer = _exactly(wrapped, 1)
            if answer[0]:
                raise Refused(f"party '{peer}' refuses: {bytes(_exactly(wrapped, answer[0])).decode()}")
        except (HansaError, OSError) as error:
            link.close()
            if isinstance(error, HansaError):
                raise
            raise self._fault or Unreachable(f"party '{peer}' ended the handshake: {error}.") from None
        return wrapped

    def _accept(self, listener: socket.socket, until: float) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # nobody reads in the other direction
        self._trust(context)
        while len(self._in) < len(self.peers) and self._fault is None:
            try:
                listener.settimeout(max(0.05, until - time.monotonic()))
                raw, _ = listener.accept()
            except (OSError, ValueError):
                return
            link: socket.socket = raw
            try:
                raw.settimeout(max(0.1, until - time.monotonic()))
                link = wrapped = context.wrap_socket(_tuned(raw), server_side=True)
                self._welcome(wrapped)
            except (HansaError, OSError, struct.error):
                link.close()  # a stranger is turned away and not told of

    def _welcome(self, link: ssl.SSLSocket) -> None:
        name = self._check(link)
        magic, parties, session = _HELLO.unpack(_exactly(link, _HELLO.size))
        fault = ""
        if magic != _MAGIC:
            fault = "another version of Hansa's mesh"
        elif name not in self.peers or name in self._in:
            fault = f"'{name}' is no other party of this session, or here already"
        elif parties != self._parties.digest():
            fault = "another file of parties: give the same one to every party"
        elif session != self._session:
            fault = "another program, other settings or another session: run the same code everywhere"
        if fault:  # ends the session here, too: kept first, since whoever is refused may end what this party dials
            self._fault = Refused(f"party '{name}' was refused: {fault}.")
            text = fault.encode()[:255]
            link.sendall(bytes([len(text)]) + text)
            raise self._fault
        link.sendall(b"\0")
        with self._mutex:
            if self._over:
                raise Unreachable("this party has given up meanwhile.")
            self._in[name] = _In(link)

    def _trust(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self._identity.authority_pem.decode())
        context.load_cert_chain(self.identity_file)

    def _check(self, link: ssl.SSLSocket, name: str | None = None) -> str:
        """The peer's name by its certificate; IdentityError unless it is a party's and, if given, of this name."""
        der = link.getpeercert(binary_form=True)
        peer = peer_of(ssl.DER_cert_to_PEM_cert(der or b"").encode())
        if fault := check_peer(peer, "party", self._revoked):
            raise IdentityError(fault)
        if name is not None and peer.name != name:
            address = self._parties[name].address
            raise IdentityError(f"at {address} is '{peer.name}', not '{name}': mend the file of parties.")
        return peer.name

    # -- ending

    def close(self) -> None:
        """Ends the session when all parties do; a party that was lost is not waited for."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._fault is None:
            with suppress(OSError):
                for out in self._out.values():
                    out.write(_frame(_BYE, "", ()), (), 0)
            for link in self._in.values():  # a party may be far ahead of others, which are not done with it
                with suppress(OSError):
                    while link.read(self._stall_s)[0] == _DATA:
                        pass
        self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._fault is None:
            self._fail(Unreachable(f"party '{self.me}' failed: {type(error).__name__}."), self.me)
        self.close()

    def _shut(self) -> None:
        with self._mutex:
            self._over = True  # whoever is still being welcomed is turned away
        for out in self._out.values():
            out.close()
        for link in self._in.values():
            link.close()

    def _broken(self, peer: str, error: OSError) -> HansaError:
        """What a broken connection means: the peer is lost, or said who was before it."""
        if self._fault is None:
            self._fail(self._last_words(peer) or _lost(peer), peer)
        assert self._fault is not None
        return self._fault

    def _last_words(self, peer: str) -> HansaError | None:
        """The loss that a party told of before it went."""
        link = self._in[peer]
        with suppress(OSError), link.lock:
            while True:
                kind, name, _ = link.next(_GRACE_S)
                if kind == _LOST:
                    return _lost(name)
        return None

    def _fail(self, fault: HansaError, lost: str | None = None) -> HansaError:
        """Keeps the first fault, and tells the others of it once."""
        with self._mutex:
            if self._fault is not None:
                return self._fault
            self._fault = fault
        name = lost or self.me
        for peer, out in self._out.items():
            if peer != name:
                with suppress(OSError):
                    out.write(_frame(_LOST, name, ()), (), 0)
        return fault

    def _watch(self) -> None:
        """Wakes up whoever waits for one party when another one is lost."""
        poll = select.poll()
        names = {link.socket.fileno(): name for name, link in self._in.items()}
        for number in names:
            poll.register(number, select.POLLRDHUP)
        while not self._closing.is_set() and self._fault is None:
            gone = [names[number] for number, _ in poll.poll(200) if number in names]
            if not gone or self._closing.wait(_GRACE_S / 4) or self._fault is not None:
                continue
            self._fail(self._last_words(gone[0]) or _lost(gone[0]), gone[0])
            time.sleep(_GRACE_S / 4)  # the others shall hear it before this party is seen to go
            # A host that vanished would keep whoever sends to it for minutes.
            links = [link.socket for link in self._in.values()]
            for link in (*links, self._out[gone[0]].socket):
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)


class _Out:
    """A connection that this party writes."""

    def __init__(self, link: ssl.SSLSocket) -> None:
        self.socket = link
        link.settimeout(None)
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._pending = 0
        self._lock = threading.Lock()
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def write(self, head: bytes, views: Sequence[memoryview], size: int) -> None:
        if self._error is not None:
            raise self._error
        with self._lock:
            if size <= _SMALL and not self._pending:
                _write(self.socket, b"".join((head, *views)))
                return
            self._pending += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, daemon=True, name="mesh sender")
            self._thread.start()
        self._queue.put((head, views))

    def _drain(self) -> None:
        while (job := self._queue.get()) is not None:
            head, views = job
            try:
                _write(self.socket, head)
                for view in views:
                    for at in range(0, len(view), _PIECE):
                        _write(self.socket, view[at : at + _PIECE])
            except OSError as error:
                self._error = error
                return
            with self._lock:
                self._pending -= 1

    def close(self) -> None:
        """After what is queued has gone, or could not."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(_FAREWELL_S)
        with suppress(OSError):
            self.socket.close()


class _In:
    """A connection that this party reads, a small frame at once."""

    def __init__(self, link: ssl.SSLSocket) -> None:
        self.socket = link
        self.lock = threading.Lock()
        self._ahead, self._at, self._end = memoryview(bytearray(_AHEAD)), 0, 0  # read and not taken: at to end

    def read(self, deadline_s: float) -> tuple[int, str, list[Buffer]]:
        with self.lock:
            return self.next(deadline_s)

    def next(self, deadline_s: float) -> tuple[int, str, list[Buffer]]:
        """The next frame: its kind, its tag, and its buffers; the lock is the caller's."""
        if self.socket.gettimeout() != deadline_s:
            self.socket.settimeout(deadline_s)
        kind, named, count, size = _FRAME.unpack(self._take(_FRAME.size))
        if kind > _LOST or size > _LARGEST or size < named + 8 * count:
            raise ConnectionError("a frame that no party of ours sends")
        whole = self._take(size)
        lengths = struct.unpack_from(f"<{count}Q", whole, named)
        at, buffers = named + 8 * count, list[Buffer]()
        for length in lengths:
            buffers.append(whole[at : at + length])
            at += length
        if at != size:
            raise ConnectionError("a frame whose buffers do not fill it")
        return kind, bytes(whole[:named]).decode(errors="replace"), buffers

    def _take(self, size: int) -> memoryview:
        """So many bytes, in memory of their own."""
        held = self._end - self._at
        if size > _AHEAD:
            view = np.empty(size, np.uint8).data  # not cleared first, as a bytearray would be
            view[:held] = self._ahead[self._at : self._end]
            self._at = self._end = 0
            while held < size:
                held += _read(self.socket, view[held:])
            return view
        if held < size:
            self._ahead[:held] = bytes(self._ahead[self._at : self._end])
            self._at, self._end = 0, held
            while self._end < size:
                self._end += _read(self.socket, self._ahead[self._end :])
        at, self._at = self._at, self._at + size
        return memoryview(bytearray(self._ahead[at : self._at]))

    def close(self) -> None:
        with suppress(OSError):
            self.socket.close()


def _frame(kind: int, tag: str, views: Sequence[memoryview]) -> bytes:
    name, lengths = tag.encode(), [len(view) for view in views]
    size = len(name) + 8 * len(lengths) + sum(lengths)
    head = _FRAME.pack(kind, len(name), len(lengths), size)
    return head + name + struct.pack(f"<{len(lengths)}Q", *lengths)


def _exactly(link: ssl.SSLSocket, size: int) -> memoryview:
    view, at = memoryview(bytearray(size)), 0
    while at < size:
        at += _read(link, view[at:])
    return view


def _read(link: ssl.SSLSocket, into: memoryview) -> int:
    """Some bytes, and how many."""
    got = link.recv_into(into)
    if not got:
        raise ConnectionResetError("the connection was closed")
    return got


def _write(link: ssl.SSLSocket, view: bytes | memoryview) -> None:
    """All bytes; without what `sendall` does for each record of TLS."""
    sent = link.send(view)
    if sent < len(view):
        link.sendall(memoryview(view)[sent:])


def _tuned(raw: socket.socket) -> socket.socket:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A host that vanished is seen on the connection that it writes, which is silent then. No TCP_USER_TIMEOUT: it would
    # also end a connection whose reader is alive and computes for longer, with its buffers full.
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        raw.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    return raw


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _lost(name: str) -> HansaError:
    return Unreachable(f"party '{name}' was lost: see its own error, and start the session again.")
