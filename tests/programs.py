"""Programs that the tests run beside Backup Audit: servers that never outlive them, and promtool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

PATIENCE = 30.0
"""Seconds in which anything that is to happen has happened, on the slowest machine that runs these tests."""

_GUARD = 'read -r _; kill -s "$1" "$2" 2>/dev/null'


class ProgramError(RuntimeError):
    """A program did not start, or did not stop; the message holds the end of its log."""


class Program:
    """A server program that stops with the test run, however that ends.

    It runs in a session of its own, so that Ctrl-C reaches the tests only, which then stop it in good order. Should
    they be killed before that, a guard does it: a shell that waits for the pipe from the tests to close.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        user: int | None = None,
        group: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._log = log
        self._stop_signal = stop_signal
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        guard = ["/bin/sh", "-c", _GUARD, "guard", stop_signal.name.removeprefix("SIG"), str(self._process.pid)]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready` says so. Raises `ProgramError` if the program ends before, or takes too long."""
        if not happens(lambda: self._process.poll() is not None or ready()) or self._process.poll() is not None:
            said = self._log.read_text("utf-8", "replace")[-2000:].strip()
            raise ProgramError(f"it is not ready (status {self._process.poll()}): {said}")

    def stop(self) -> None:
        """Stop the program by its own signal, and wait for its end. Harmless if it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._guard.kill()
        self._guard.communicate()


def happens(ready: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Look again and again; whether it is so in time."""
    deadline = time.monotonic() + seconds
    while not (done := bool(ready())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return done


def wait_until(ready: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Look again and again until it is so. Fails if it takes too long."""
    assert happens(ready, seconds), "it does not happen"


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str) -> Path | None:
    """Where a program is; also in the folders that an ordinary user's PATH leaves out."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin:/usr/local/bin")
    return Path(found) if found else None


def require(program: str, package: str) -> Path:
    """Where a program of a Debian package is. Skips the test where it is missing, but fails under CI."""
    return find_program(program) or give_up(f"{program} is not installed (Debian: {package})")


def give_up(reason: str) -> NoReturn:
    """Skip the test, but fail under CI."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)


def promtool_check_metrics(textfile: Path) -> str:
    """What `promtool check metrics` has to say about a textfile: nothing, if all is well."""
    command: list[str | Path] = [require("promtool", "prometheus"), "check", "metrics"]
    answer = subprocess.run(command, input=textfile.read_bytes(), capture_output=True, check=False, timeout=60)
    said = (answer.stdout + answer.stderr).decode("utf-8", "replace")
    return said if said or answer.returncode == 0 else f"promtool exits {answer.returncode}"


def scrape_textfiles(directory: Path, log: Path) -> str:
    """What a real node_exporter serves at /metrics when its textfile collector reads `directory`."""
    with textfile_exporter(directory, log) as address:
        return _get(f"http://{address}/metrics").decode("utf-8")


def textfile_exporter(directory: Path, log: Path) -> AbstractContextManager[str]:
    """A real node_exporter whose textfile collector reads `directory`; yields its address."""
    node_exporter = require("prometheus-node-exporter", "prometheus-node-exporter")
    collectors = ("--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={directory}")
    return web_server(log, "/", node_exporter, *collectors, "--web.disable-exporter-metrics")


@contextmanager
def web_server(log: Path, ready: str, *command: str | Path) -> Iterator[str]:
    """A program of Prometheus' on a free port of the loopback; yields its address when it answers at `ready`."""
    address = f"127.0.0.1:{free_port()}"

    def answers() -> bool:
        try:
            return bool(_get(f"http://{address}{ready}"))
        except URLError:
            return False

    server = Program([*command, f"--web.listen-address={address}"], log)
    try:
        server.wait_until(answers)
        yield address
    finally:
        server.stop()


def ask(address: str, path: str, **parameters: str) -> Any:
    """The JSON that a server answers."""
    return json.loads(_get(f"http://{address}{path}?{urlencode(parameters)}"))


def _get(url: str) -> bytes:
    # without a proxy handler, which an environment of the machine might name even for the loopback
    with build_opener(ProxyHandler({})).open(url, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
    return body
