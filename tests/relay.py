"""The network between an audit and its server: it keeps what is said, acts at a query, or breaks at a byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

from tests.builders import Site
from tests.postgres import HOST

TABLES = (b"containers", b"container_state", b"backups")


class Relay(ThreadingTCPServer):
    """A relay to a server, on a port of its own, or at a socket."""

    def __init__(self, port: int, place: Any = (HOST, 0)) -> None:
        self.address_family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        super().__init__(place, BaseRequestHandler)
        self.asked = bytearray()
        self.heard = bytearray()
        self.allowance: int | None = None
        """The bytes that the server may still say before the connection breaks."""
        self.at_query: dict[int, Callable[[], object]] = {}
        """What to do before a query of a table is passed on, by its number in the connection."""
        self._target = port

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Relay one connection, until either side hangs up."""
        with socket.create_connection((HOST, self._target)) as server:
            answers = threading.Thread(target=self._answer, args=(server, request))
            answers.start()
            self._ask(request, server)
            answers.join()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        queries = 0
        with suppress(OSError):  # a side that has hung up
            while data := client.recv(65536):
                self.asked += data
                if data[:1] == b"Q" and any(table in data for table in TABLES):
                    queries += 1
                    self.at_query.get(queries, lambda: None)()
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
def relayed(site: Site) -> Iterator[Relay]:
    """A relay that the site's configurations of this block go through, unencrypted."""
    direct = site.settings
    with Relay(site.postgres.server.port) as relay:
        site.settings = {**direct, "mydb_admin_port": relay.server_address[1], "libpq_options": {"sslmode": "disable"}}
        site.config()
        threading.Thread(target=relay.serve_forever, args=(0.01,)).start()
        try:
            yield relay
        finally:
            relay.shutdown()
            site.settings = direct
