"""Programs that the tests run beside Backup Audit: servers that never outlive them, and promtool."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

PATIENCE = 30.0
"""Seconds that a server may take to start or to stop, on the slowest machine that runs these tests."""

_GUARD = 'read -r _; kill -s "$1" "$2" 2>/dev/null'


class ProgramError(RuntimeError):
    """A program did not start, or did not stop; the message holds the end of its log."""


class Program:
    """A server program that stops with the test run, however that ends.

    It runs in a session of its own, so that Ctrl-C reaches the tests only, which then stop it in good
    order. Should the tests be killed before they can do that, a guard does it: a shell that waits for
    the pipe from the tests to close.
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
        self.log = log
        self.stop_signal = stop_signal
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
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", stop_signal.name.removeprefix("SIG"), str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready` says so. Raises `ProgramError` if the program ends before, or takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if not self.running:
                raise ProgramError(f"it has ended with status {self._process.returncode}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise ProgramError(f"it is not ready after {PATIENCE:.0f} seconds: {self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        """The end of the program's log."""
        return self.log.read_text("utf-8", "replace")[-2000:].strip()

    def stop(self, how: signal.Signals | None = None) -> None:
        """Stop the program by its own signal, or by `how`, and wait for its end. Harmless if it has ended."""
        if self.running:
            self._process.send_signal(how or self.stop_signal)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._guard.poll() is None:
            self._guard.kill()
            self._guard.wait()
        if self._guard.stdin:
            self._guard.stdin.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str) -> Path | None:
    """Where a program is; also in the folders that an ordinary user's PATH leaves out."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin:/usr/local/bin")
    return Path(found) if found else None


def promtool_check_metrics(promtool: Path, textfile: Path) -> str:
    """What `promtool check metrics` has to say about a textfile: nothing, if all is well."""
    command: list[str | Path] = [promtool, "check", "metrics"]
    answer = subprocess.run(command, input=textfile.read_bytes(), capture_output=True, check=False, timeout=60)
    said = (answer.stdout + answer.stderr).decode("utf-8", "replace")
    return said if said or answer.returncode == 0 else f"promtool exits {answer.returncode}"


def scrape_textfiles(node_exporter: Path, directory: Path, log: Path) -> str:
    """What a real node_exporter serves at /metrics when its textfile collector reads `directory`."""
    with textfile_exporter(node_exporter, directory, log) as address:
        return _get(f"http://{address}/metrics").decode("utf-8")


def textfile_exporter(node_exporter: Path, directory: Path, log: Path) -> AbstractContextManager[str]:
    """A real node_exporter whose textfile collector reads `directory`; yields its address."""
    collectors = ("--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={directory}")
    return _web_server(log, "/", node_exporter, *collectors, "--web.disable-exporter-metrics")


def prometheus_server(prometheus: Path, config: Path, data: Path, log: Path) -> AbstractContextManager[str]:
    """A real Prometheus that keeps its samples in the folder `data`; yields its address."""
    return _web_server(log, "/-/ready", prometheus, f"--config.file={config}", f"--storage.tsdb.path={data}")


def alertmanager_server(alertmanager: Path, config: Path, data: Path, log: Path) -> AbstractContextManager[str]:
    """A real Alertmanager, alone, that keeps its state in the folder `data`; yields its address."""
    options = (f"--config.file={config}", f"--storage.path={data}", "--cluster.listen-address=")
    return _web_server(log, "/-/ready", alertmanager, *options)


def ask(address: str, path: str, *parameters: tuple[str, str]) -> Any:
    """The JSON that a server answers. Raises `ProgramError` with its words if it answers with an error."""
    url = f"http://{address}{path}?{urlencode(parameters)}"
    try:
        return json.loads(_get(url))
    except HTTPError as error:
        with error:
            raise ProgramError(f"{url}: {error.read().decode('utf-8', 'replace')}") from None


@contextmanager
def _web_server(log: Path, ready: str, *command: str | Path) -> Iterator[str]:
    """A server on a free port of the loopback; yields its address when it answers at the path `ready`."""
    address = f"127.0.0.1:{free_port()}"

    def answers() -> bool:
        try:
            return bool(_get(f"http://{address}{ready}"))
        except URLError:
            return False

    with Program([*command, f"--web.listen-address={address}"], log) as server:
        server.wait_until(answers)
        yield address


def _get(url: str) -> bytes:
    # without a proxy handler, which an environment of the machine might name even for the loopback
    with build_opener(ProxyHandler({})).open(url, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
    return body
