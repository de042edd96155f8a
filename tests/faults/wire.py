"""A connection that can be cut: a proxy between a client and a server on loopback."""

import socket
import threading
from contextlib import suppress

_CHUNK = 1 << 16


class Wire:
    """Carries bytes to a port until it is cut; after `mend` it carries again.

    Arguments:
        port: Where the server listens.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._whole = True
        self._left: int | None = None
        self.was_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drops all connections, and new ones as soon as they are made."""
        with self._lock:
            self._whole, self.was_cut, self._left = False, True, None
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut_after(self, sendings: int) -> None:
        """Cuts when the clients have sent something so many times more."""
        with self._lock:
            self._left = sendings

    def mend(self) -> None:
        with self._lock:
            self._whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                whole = self._whole
                if whole:
                    self._open |= {client, server}
            if not whole:
                client.close()
                server.close()
                continue
            threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if counted and self._used_up():
                    self.cut()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source}
        source.close()

    def _used_up(self) -> bool:
        with self._lock:
            if self._left is None:
                return False
            self._left -= 1
            return self._left < 0
