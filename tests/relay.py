"""The network between an audit and its server: it keeps what is said, acts at a query, or breaks at a byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.builders import Site
from tests.postgres import HOST

TABLES = (b"containers", b"container_state", b"backups")


class Relay:
    """A relay to a server, on a port of its own, for one connection after the other."""

    def __init__(self, port: int) -> None:
        self.asked = bytearray()
        self.heard = bytearray()
        self.allowance: int | None = None
        """The bytes that the server may still say before the connection breaks."""
        self.at_query: Callable[[int], None] = lambda number: None
        """Called before a query of a table is passed on, with its number."""
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection((HOST, self._target)) as server:
                answers = threading.Thread(target=self._answer, args=(server, client))
                answers.start()
                self._ask(client, server)
                answers.join()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        queries = 0
        with suppress(OSError):  # a side that has hung up
            while data := client.recv(65536):
                self.asked += data
                if data[:1] == b"Q" and any(table in data for table in TABLES):
                    queries += 1
                    self.at_query(queries)
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self.heard += data
                if self.allowance is not None:
                    data = data[: self.allowance]
                    self.allowance -= len(data)
                client.sendall(data)
                if self.allowance == 0:
                    break
        for side in (client, server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


@contextmanager
def relayed(site: Site, **settings: object) -> Iterator[Relay]:
    """A relay that the site's configurations of this block go through, unencrypted."""
    assert site.database
    relay, direct = Relay(site.database.server.port), site.settings
    site.settings = {**direct, "mydb_admin_port": relay.port, "libpq_options": {"sslmode": "disable"}}
    site.config(**settings)
    try:
        yield relay
    finally:
        site.settings = direct
        relay.close()
