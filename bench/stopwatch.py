"""Runs one command, and tells as JSON on stderr's last line how long it took and how much memory.

A process of its own, because Linux counts the memory of the process that starts a command as the
command's own until it is replaced: this one is small.
"""

import json
import os
import subprocess
import sys
import time


def main(command: list[str]) -> int:
    """Run the command, with stdout left as it is; gives back 0 whatever the command's status."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - what bench.py says
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = usage.ru_utime + usage.ru_stime
    found = {"seconds": seconds, "cpu": cpu, "memory": memory, "status": os.waitstatus_to_exitcode(status)}
    print(f"\n{json.dumps(found)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
