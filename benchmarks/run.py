"""perdure beside DBOS, doing the same work on the same machine, in turns.

    uv run --group bench python benchmarks/run.py              # every case; some minutes
    uv run --group bench python benchmarks/run.py --quick a b  # small sizes, two cases
    … --json results.json --repeat 5 --sides perdure

Every number comes from a process of its own with a new SQLite file (WAL, synchronous=FULL on both
sides); the sides take turns, and the table shows the median of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import measure
from tables import Row, ratio, shown

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 1800
Size = dict[str, int]
Facts = dict[str, float]


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    kind: str  # "once", or the pair of cases with a kill -9 in between
    size: Size
    quick: Size
    rows: tuple[Row, ...]


CASES = {
    "a": Case(
        "a", "{workflows} workflows of {steps} sequential no-op activities, {in_flight} in flight",
        "throughput",
        {"workflows": 500, "steps": 10, "in_flight": 200},
        {"workflows": 100, "steps": 10, "in_flight": 100},
        (Row("steps_per_s", "steps", "/s", True), Row("cpu_us_per_step", "CPU a step", "µs")),
    ),
    "b": Case(
        "b", "one workflow of {steps} sequential activities", "latency",
        {"steps": 200}, {"steps": 100},
        (Row("p50_ms", "step p50", "ms"), Row("p99_ms", "step p99", "ms"),
         Row("cpu_us_per_step", "CPU a step", "µs")),
    ),
    "c": Case(
        "c", "{workflows} workflows of one activity, one after the other", "short",
        {"workflows": 200}, {"workflows": 50},
        (Row("p50_ms", "workflow p50", "ms"), Row("p99_ms", "workflow p99", "ms")),
    ),
    "d": Case(
        "d", "one workflow of {steps:,} parallel activities", "fan_out",
        {"steps": 1000}, {"steps": 200},
        (Row("seconds", "wall", "s"), Row("cpu_s", "CPU", "s")),
    ),
    "e": Case(
        "e", "{workflows:,} workflows asleep, kill -9, restart", "asleep/awake",
        {"workflows": 10_000, "early_s": 40, "late_s": 80},
        {"workflows": 500, "early_s": 8, "late_s": 20},
        (Row("memory_bytes_per_workflow", "memory a workflow", "B"),
         Row("database_bytes_per_workflow", "database a workflow", "B"),
         Row("start_per_s", "started", "/s", True),
         Row("overdue_done_s", "restart until the overdue half is done", "s"),
         Row("lateness_s", "the other half: last one done after due", "s")),
    ),
    "f": Case(
        "f", "replay of a workflow of {steps:,} steps in a restarted process", "grow/replay",
        {"steps": 0}, {"steps": 0},
        (Row("steps_per_s", "replayed steps", "/s", True),
         Row("events_per_s", "replayed events", "/s", True)),
    ),
}  # fmt: skip

# All must be asleep before the first is due: a side that starts them slowly lets them sleep longer.
SLOWER = {"dbos": {"full": {"early_s": 240, "late_s": 480}, "quick": {}}}

# A sequential step is six events in a history of perdure's: up to 50,000 events.
REPLAY_STEPS = {"full": (17, 170, 1700, 8333), "quick": (17, 170)}


def run_side(side: str, case: str, folder: Path, size: Size) -> Facts:
    """Measure in a fresh process; kill it with SIGKILL as soon as it has said its numbers."""
    command = [sys.executable, str(HERE / "side.py"), side, case, str(folder), json.dumps(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    return dict(json.loads(line))
        finally:
            process.send_signal(signal.SIGKILL)
    raise SystemExit(f"{side} {case}: the measured process ended without a result")


def run_case(case: Case, side: str, size: Size) -> Facts:
    """All the facts of one case on one side, on a new database."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        folder = Path(name)
        if "/" not in case.kind:
            return run_side(side, case.kind, folder, size)
        first, second = case.kind.split("/")
        facts = run_side(side, first, folder, size)
        if "early_due" in facts:
            time.sleep(max(0.0, facts["early_due"] - time.time()) + 0.1)
            size = size | {"late_due_ms": int(facts["late_due"] * 1000)}
        return facts | run_side(side, second, folder, size)


def sizes(case: Case, *, quick: bool) -> Iterator[Size]:
    """The sizes to measure a case at."""
    if case.name == "f":
        for steps in REPLAY_STEPS["quick" if quick else "full"]:
            yield {"steps": steps}
    else:
        yield case.quick if quick else case.size


def measure_all(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Every case at every size: one result per side, the sides taking turns."""
    results = []
    for name in arguments.cases or CASES:
        case = CASES[name]
        for size in sizes(case, quick=arguments.quick):
            taken: dict[str, list[Facts]] = {side: [] for side in arguments.sides}
            for turn in range(1 if case.name in "ef" else arguments.repeat):
                for side in arguments.sides:
                    console.print(
                        f"({name}) {case.title.format(**size)}: {side}, turn {turn + 1}",
                        style="dim",
                    )
                    taken[side].append(
                        run_case(case, side, size | _slower(case, side, arguments.quick))
                    )
            medians = {side: _medians(facts) for side, facts in taken.items()}
            results.append({"case": name, "size": size, "sides": medians})
    return results


def _slower(case: Case, side: str, quick: bool) -> Size:
    if case.name != "e" or side not in SLOWER:
        return {}
    return SLOWER[side]["quick" if quick else "full"]


def _medians(taken: list[Facts]) -> Facts:
    return {key: statistics.median(facts[key] for facts in taken) for key in taken[0]}


def table_of(results: list[dict[str, Any]], sides: list[str]) -> Table:
    """The results as a table; a ratio over 1 says how many times better perdure is."""
    table = Table("", "work", "measure", *sides, "ratio")
    for result in results:
        case = CASES[result["case"]]
        head = (f"({case.name})", case.title.format(**result["size"]))
        for row in case.rows:
            values = [result["sides"][side].get(row.key) for side in sides]
            first, other = [*values, None][:2]
            table.add_row(
                *head, row.label, *(shown(value, row.unit) for value in values),
                ratio(first, other, row),
            )  # fmt: skip
            head = ("", "")
        table.add_section()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--repeat", type=int, default=3, help="turns of (a) to (d), default 3")
    parser.add_argument("--sides", nargs="+", default=["perdure", "dbos"])
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        machine = measure.machine(Path(name))
    machine |= {side: version(side) for side in arguments.sides}
    results = measure_all(arguments, console)
    out = Console(width=max(120, Console().width))
    for key, value in machine.items():
        out.print(f"{key:8} {value}")
    out.print(table_of(results, arguments.sides))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
