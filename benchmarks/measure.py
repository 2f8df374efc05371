"""What both sides of the benchmark measure with."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType


@dataclass
class Span:
    """Wall-clock and CPU time (this process, all threads) of a block, in seconds."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    end: float = 0.0  # on the clock that all processes of the machine share
    _wall: float = field(default=0.0, repr=False)
    _cpu: float = field(default=0.0, repr=False)

    def __enter__(self) -> Span:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end = time.perf_counter()
        self.wall_s = self.end - self._wall
        self.cpu_s = time.process_time() - self._cpu


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def percentiles_ms(taken_s: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": quantile(taken_s, 0.5) * 1e3, "p99_ms": quantile(taken_s, 0.99) * 1e3}


def gaps_ms(marks_s: Sequence[float]) -> dict[str, float]:
    """Percentiles of the time from one mark to the next."""
    return percentiles_ms([after - before for before, after in pairwise(marks_s)])


def throughput_facts(span: Span, size: dict[str, int]) -> dict[str, float]:
    """What a span of so many workflows of so many steps amounts to."""
    steps = size["workflows"] * size["steps"]
    return {
        "steps_per_s": steps / span.wall_s,
        "cpu_us_per_step": span.cpu_s / steps * 1e6,
        "begin": span.end - span.wall_s,
        "end": span.end,
    }


def rss_bytes() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def folder_bytes(folder: Path | str) -> int:
    """Bytes of all files in a folder: the database with its write-ahead log."""
    return sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())


async def ready(size: dict[str, int], work: Callable[[], Awaitable[object]]) -> None:
    """Warm up, tell so, and wait for the word, where the runner of the benchmark gives one."""
    if size.get("gated"):
        await asyncio.gather(*(work() for _ in range(20)))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


async def timed(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """How long each of some calls takes, one after the other."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - begin)
    return taken


def named_ms(name: str, taken_s: Sequence[float]) -> dict[str, float]:
    """Percentiles, each with the name of what was done before its own."""
    return {f"{name}_{key}": value for key, value in percentiles_ms(taken_s).items()}


@dataclass
class Due:
    """When sleepers wake: the even ones before the restart, the odd ones after it."""

    early: float
    late: float

    @classmethod
    def after(cls, size: dict[str, int]) -> Due:
        now = time.time()
        return cls(now + size["early_s"], now + size["late_s"])

    def delay_s(self, n: int) -> float:
        """How long sleeper n has to sleep from now on."""
        return max(0.001, (self.late if n % 2 else self.early) - time.time())


def asleep_facts(
    folder: Path | str, before_bytes: int, span: Span, due: Due, count: int
) -> dict[str, float]:
    """What `count` sleeping workflows cost."""
    return {
        "start_per_s": count / span.wall_s,
        "memory_bytes_per_workflow": (rss_bytes() - before_bytes) / count,
        "database_bytes_per_workflow": folder_bytes(folder) / count,
        "early_due": due.early,
        "late_due": due.late,
    }


async def wait_for_done(done: list[float], size: dict[str, int], begin: float) -> dict[str, float]:
    """Wait until all sleepers have finished; `begin` and the times in `done` are wall-clock."""
    count, deadline = size["workflows"], begin + 1800
    early = count - count // 2
    while len(done) < count and time.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    ordered = sorted(done)
    if len(done) < count:
        return {"finished": float(len(done))}
    late_due = size["late_due_ms"] / 1e3
    return {
        "overdue_done_s": ordered[early - 1] - begin,
        "all_done_s": ordered[-1] - begin,
        "lateness_s": ordered[-1] - max(late_due, begin),
        "late_due_after_restart_s": late_due - begin,
    }


def fsync_ms(folder: Path, times: int = 200) -> dict[str, float]:
    """How long a 4 KiB append with fdatasync takes in this folder."""
    taken: list[float] = []
    path = folder / "fsync-probe"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(times):
            os.write(fd, b"x" * 4096)
            begin = time.perf_counter()
            os.fdatasync(fd)
            taken.append(time.perf_counter() - begin)
    finally:
        os.close(fd)
        path.unlink()
    return percentiles_ms(taken)


def machine(folder: Path) -> dict[str, str]:
    """The machine, as the head of a table tells it."""
    sync = fsync_ms(folder)
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "fsync": f"p50 {sync['p50_ms']:.3f} ms, p99 {sync['p99_ms']:.3f} ms",
        "load": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
    }
