"""The servers that `served.py` compares, each a process of its own on a free port.

perdure keeps its data in a SQLite file with ``journal_mode=WAL`` and ``synchronous=FULL``.
Temporal's dev server keeps its data in a SQLite file (its own choice of journal and synchronous
mode), or in memory, where a restart loses all.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BIN = Path(sys.executable).parent
_READY_WITHIN_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")

SERVERS = ("perdure", "temporal", "temporal-memory")


@dataclass
class Server:
    """A running server."""

    pid: int
    address: str
    ready_after_s: float


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def command(name: str, port: int, folder: Path, db: str = "") -> list[str]:
    """How a server is started; `db` is perdure's database, if not a file in the folder."""
    if name == "perdure":
        db = db or f"sqlite:///{folder / 'perdure.db'}"
        return [str(_BIN / "perdure"), "server", "--port", str(port), "--db", db]
    made = [str(_BIN / "temporal"), "server", "start-dev", "--headless", "--ip", "127.0.0.1"]
    made += ["--port", str(port), "--log-level", "error"]
    if name == "temporal":
        made += ["--db-filename", str(folder / "temporal.db")]
    return made


@contextmanager
def running(name: str, folder: Path, db: str = "") -> Iterator[Server]:
    """Run a server over a folder until the block ends; it is killed then, not asked."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.perf_counter()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command(name, port, folder, db), stdout=log, stderr=log)
    try:
        _wait(port, process)
        yield Server(process.pid, f"127.0.0.1:{port}", time.perf_counter() - begin)
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it listens; what it can do by then is for the client to find out."""
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"a server did not start: {process.args}")
