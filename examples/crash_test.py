"""Kill the examples at random instants, start them again, and see that nothing is lost.

    python examples/crash_test.py                       # 300 kills
    python examples/crash_test.py --kills 5000 --seed 7
    python examples/crash_test.py --keep /tmp/crashed   # leave databases and books there

In every round a program with some orders, a pipeline and an approval works on a new database, is
killed and restarted until a last start is left alone to finish, and then everything is checked: see
crash_check.py. Now and then it is checked between a kill and the restart, too. The seed chooses the
instants; what the program has reached by then is for the machine to say, so a seed does not repeat
a failure exactly: use --keep for the evidence.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import approval  # noqa: E402
import crash_check  # noqa: E402
import orders  # noqa: E402
import outside  # noqa: E402
import perdure  # noqa: E402
import pipeline  # noqa: E402
from crash_check import Size  # noqa: E402

FINISH_WITHIN_S = 60.0
LONGEST_LIFE_S = 0.6
CHECKED_SHARE = 0.1
SCRIPT_KILLS = 4  # of each example as a script of its own, with an interpreter of its own

# A process started from this context is forked from one that has imported everything but opened
# nothing: a kill costs milliseconds, not the second that an import takes.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    [
        "perdure", "perdure.sdk.worker", "perdure.service.node", "perdure.store.sqlite",
        "perdure.engine.replay", "perdure.sdk.runtime.replayer", "rich.progress",
    ]
)  # fmt: skip


class Wrong(Exception):
    """A check has failed; the message is the evidence."""


# --- in the killed process --------------------------------------------------------------------


def program(folder: Path, size: Size) -> None:
    """The program that gets killed: all three examples at once on one database."""
    with logged(folder / "program.log"):
        os.environ[outside.BOOKS_VARIABLE] = str(folder / "books.jsonl")
        asyncio.run(work(folder, size))


async def work(folder: Path, size: Size) -> None:
    """Run everything to its end; what is done already is found done."""
    target = f"sqlite:///{folder / 'runs.db'}"
    async with perdure.connect(target) as client, client.worker():
        await asyncio.gather(
            orders.run(client, size.orders, quiet=True),
            pipeline.run(client, pipeline.Job(str(folder / "data"), size.chunks), quiet=True),
            *(
                approval.run(client, crash_check.approval_name(n), quiet=True)
                for n in range(size.approvals)
            ),
        )


def checker(folder: Path, size: Size, finished: bool) -> None:
    """Check in a process of its own; faults go to a file, and make it end with 1."""
    with logged(folder / "check.log"):
        os.environ[outside.BOOKS_VARIABLE] = str(folder / "books.jsonl")
        found = asyncio.run(crash_check.check(folder, size, finished=finished))
        (folder / "checked.txt").write_text(f"{found.runs} {found.events} {found.executions}")
        if found.wrong:
            print("\n".join(found.wrong[:20]))
            sys.exit(1)


class logged:
    """Send output, and the traceback of what goes wrong, to a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")
        self.redirects = (redirect_stdout(self.file), redirect_stderr(self.file))

    def __enter__(self) -> None:
        for redirect in self.redirects:
            redirect.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, SystemExit):
            traceback.print_exc(file=self.file)
        self.file.flush()


# --- in the killing process -------------------------------------------------------------------


@dataclass
class Tally:
    """What was done in all, by all lanes."""

    wanted: int
    kills: int = 0
    rounds: int = 0
    checks: int = 0
    runs: int = 0
    events: int = 0
    executions: int = 0
    failure: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take_kill(self) -> bool:
        """May there be one more kill?"""
        with self.lock:
            if self.kills >= self.wanted or self.failure:
                return False
            self.kills += 1
            return True


class Forked:
    """A start of the whole program, forked from the warm process."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.process = forks.Process(target=program, args=(folder, size))
        self.process.start()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None if it is still running then."""
        self.process.join(timeout_s)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Script:
    """A start of one example as users start it."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        command = [sys.executable, str(HERE / arguments[0]), *arguments[1:]]
        command += ["--db", f"sqlite:///{folder / 'runs.db'}"]
        books = {outside.BOOKS_VARIABLE: str(folder / "books.jsonl")}
        with (folder / "program.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=os.environ | books
            )

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None if it is still running then."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def round_of(
    folder: Path,
    start: Callable[[], Forked | Script],
    life_s: Callable[[], float],
    size: Size,
    tally: Tally,
    dice: random.Random,
    kills: int,
) -> None:
    """One program on one database: up to so many kills, then a start that is left alone."""
    for _ in range(kills):
        if not tally.take_kill():
            break
        started = start()
        code = started.wait(life_s())
        if code is not None:
            ended_well(code, folder)
            with tally.lock:
                tally.kills -= 1
            break
        started.kill()
        if dice.random() < CHECKED_SHARE and (folder / "books.jsonl").exists():
            checked(folder, size, tally, finished=False)
    started = start()
    code = started.wait(FINISH_WITHIN_S)
    if code is None:
        started.kill()
        raise Wrong(f"not finished after {FINISH_WITHIN_S} s; {log_of(folder, 'program.log')}")
    ended_well(code, folder)
    checked(folder, size, tally, finished=True)
    with tally.lock:
        tally.rounds += 1


def ended_well(code: int, folder: Path) -> None:
    if code != 0:
        raise Wrong(f"the program ended with {code}; {log_of(folder, 'program.log')}")


def checked(folder: Path, size: Size, tally: Tally, *, finished: bool) -> None:
    process = forks.Process(target=checker, args=(folder, size, finished))
    process.start()
    process.join(FINISH_WITHIN_S)
    if process.exitcode != 0:
        process.kill()
        raise Wrong(f"the check ended with {process.exitcode}: {log_of(folder, 'check.log')}")
    runs, events, executions = map(int, (folder / "checked.txt").read_text().split())
    with tally.lock:
        tally.checks += 1
        if finished:
            tally.runs += runs
            tally.events += events
            tally.executions += executions


def log_of(folder: Path, name: str) -> str:
    path = folder / name
    return path.read_text(encoding="utf-8", errors="replace")[-3000:] if path.exists() else ""


def lane(number: int, seed: int, base: Path, tally: Tally, keep: bool) -> None:
    """Rounds, one after the other, until there are kills enough."""
    dice = random.Random(f"{seed}/{number}")
    count = 0
    while not tally.failure and (count == 0 or tally.kills < tally.wanted):
        folder = base / f"lane-{number}-round-{count}"
        folder.mkdir(parents=True)
        try:
            one_round(folder, count, tally, dice)
        except Exception as error:
            tally.failure = tally.failure or f"{folder.name}: {error}"
            return
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        count += 1


def one_round(folder: Path, count: int, tally: Tally, dice: random.Random) -> None:
    """Mostly the whole program; each lane begins with one script by itself."""
    if count == 0:
        arguments, size = dice.choice(
            [
                (["orders.py", "--orders", "200"], Size(200, 0, 0)),
                (
                    ["pipeline.py", "--chunks", "150", "--data", str(folder / "data")],
                    Size(0, 150, 0),
                ),
                (["approval.py"], Size(0, 0, 1)),
            ]
        )
        round_of(folder, lambda: Script(folder, arguments), lambda: dice.uniform(0.8, 3.0), size,
                 tally, dice, SCRIPT_KILLS)  # fmt: skip
        return
    size = Size(dice.randint(5, 60), dice.randint(20, 200), dice.randint(1, 3))
    longest_s = dice.choice([0.3, LONGEST_LIFE_S, LONGEST_LIFE_S])
    round_of(folder, lambda: Forked(folder, size), lambda: dice.uniform(0.02, longest_s), size,
             tally, dice, dice.randint(5, 25))  # fmt: skip


def run(kills: int, seed: int, lanes: int, keep: Path | None) -> Tally:
    """All lanes, to their ends."""
    tally = Tally(kills)
    base = keep or Path(tempfile.mkdtemp(prefix="perdure-crash-"))
    threads = [
        threading.Thread(target=lane, args=(n, seed, base, tally, keep is not None))
        for n in range(lanes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if keep is None and not tally.failure:
        shutil.rmtree(base, ignore_errors=True)
    elif tally.failure:
        tally.failure += f"\nDatabases, books and logs are in {base}"
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="how many, default 300")
    parser.add_argument("--seed", type=int, default=None, help="default: a random one")
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="programs at a time")
    parser.add_argument("--keep", type=Path, default=None, help="a folder that is left behind")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    begin = time.monotonic()
    tally = run(arguments.kills, seed, arguments.lanes, arguments.keep)
    print(
        f"seed {seed}: {tally.kills} kills in {tally.rounds} rounds and "
        f"{time.monotonic() - begin:.0f} s, {tally.checks} checks; "
        f"{tally.runs} runs with {tally.events} events, {tally.executions} executions of activities"
    )
    if tally.failure:
        sys.exit(f"WRONG: {tally.failure}")
    print("nothing lost, nothing done twice")


if __name__ == "__main__":
    main()
