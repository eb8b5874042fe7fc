"""A TCP proxy between workers and their server, which counts bytes and cuts connections when told to."""

import contextlib
import socket
import threading


class Proxy:
    """Listens at `address` and hands everything on to `target` (HOST:PORT).

    Args:
      cut_after: closes all connections once so many bytes went through, and every so many after that, `cuts` times.
    """

    def __init__(self, target: str, cut_after: int = 0, cuts: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._cut_after, self.cuts_left = cut_after, cuts
        self.up = self.down = 0
        self._since = 0
        self._turn = threading.Lock()
        self._open: list[socket.socket] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                if self._closed:
                    return
                near.close()
                continue
            self._open += [near, far]
            threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(64 << 10):
                sink.sendall(data)
                with self._turn:
                    if up:
                        self.up += len(data)
                    else:
                        self.down += len(data)
                    self._since += len(data)
                    if self.cuts_left and self._since >= self._cut_after:
                        self._since, self.cuts_left = 0, self.cuts_left - 1
                        self.cut()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def cut(self) -> None:
        """Ends every connection, without a word."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
