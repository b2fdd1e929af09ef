"""Chromium without a window, driven by its own protocol through its standard streams."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PATIENCE = 60.0
"""Seconds that an answer may take, on the slowest machine that runs these tests."""

# the protocol's streams are 3 and 4; a browser that loses them ends
_SHELL = ("/bin/sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >&2', "chromium")
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A browser with one tab, and the protocol's events since the last page was opened."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._received = bytearray()
        self._calls = 0
        self._session: dict[str, str] = {}
        self._events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one call of the protocol. Raises `RuntimeError` if it fails."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters, **self._session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._calls:
            pass
        result: dict[str, Any] = answer.get("result", {})
        if "error" in answer or "exceptionDetails" in result:
            raise RuntimeError(f"{method}: {answer.get('error') or result['exceptionDetails']}")
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            data = self._answers.read(1 << 20) if ready else b""
            if not data:
                raise RuntimeError("the browser has ended" if ready else "the browser does not answer")
            self._received += data
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append((message["method"], message["params"]))
        return message

    def open(self, page: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.events("Page.loadEventFired"):
            self._receive()

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What these events told."""
        return [parameters for name, parameters in self._events if name in names]

    def console(self) -> list[dict[str, Any]]:
        """What the page wrote to the console, or the browser on its behalf."""
        return self.events("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")


@contextmanager
def running_browser(program: Path, folder: Path) -> Iterator[Browser]:
    """A browser that keeps its profile and its log in an empty folder."""
    command = [*_SHELL, str(program), *_OPTIONS, f"--user-data-dir={folder / 'profile'}"]
    with (
        (folder / "chromium.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0) as process,
    ):
        assert process.stdin
        assert process.stdout
        try:
            yield Browser(process.stdin, process.stdout)
        finally:
            process.terminate()
