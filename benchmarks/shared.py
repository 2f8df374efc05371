"""perdure on PostgreSQL: one node and several, embedded and served, beside DBOS on the same server.

    uv run --group bench python benchmarks/shared.py              # every case
    uv run --group bench python benchmarks/shared.py --quick a b  # small sizes, some cases
    … --repeat 5 --sides perdure --json results.json

Every number comes from new processes and a new database; the sides take turns on one server, which
waits for the disk at each commit (fsync and synchronous_commit are on), and the table shows the
median. What the database did is counted from after the warm-up, over all nodes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import database
import measure
import servers
from tables import Row, ratio, shown

HERE = Path(__file__).resolve().parent
Size = dict[str, int]
Facts = dict[str, float]

DATABASE_ROWS = (
    Row("database_cpu_us_per_step", "database CPU a step", "µs"),
    Row("executing_us_per_step", "time in statements a step", "µs"),
    Row("statements_per_step", "statements a step", ""),
    Row("wal_bytes_per_step", "WAL a step", "B"),
)


def _times(*names: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{name}_{part}_ms", f"{name} {part}", "ms")
        for name in names
        for part in ("p50", "p99")
    )


@dataclass(frozen=True)
class Case:
    """`nodes` is 0 for one embedded process; `served` puts a gRPC server between."""

    title: str
    kind: str
    size: Size
    quick: Size
    rows: tuple[Row, ...]
    nodes: int = 1
    served: bool = False
    sides: tuple[str, ...] = ("perdure", "dbos")


_MANY = {"workflows": 500, "steps": 10, "in_flight": 100}
"""As many at once as a worker of perdure has slots."""

_FEW = {"workflows": 60, "steps": 10, "in_flight": 60}


def _sides(served: bool) -> tuple[str, ...]:
    return ("perdure",) if served else ("perdure", "dbos")


def _where(nodes: int, served: bool) -> str:
    return f"{'gRPC server' if served else 'embedded'}, nodes: {nodes}"


def _throughput(nodes: int, *, served: bool) -> Case:
    title = f"{_where(nodes, served)}; each {{workflows}} workflows of {{steps}} steps"
    rows = [
        Row("steps_per_s", "steps", "/s", True),
        Row("workflows_per_s", "workflows", "/s", True),
        Row(
            "cpu_us_per_step", "client's and worker's CPU a step" if served else "CPU a step", "µs"
        ),
    ]
    if served:
        rows.append(Row("server_cpu_us_per_step", "server CPU a step", "µs"))
    return Case(
        title, "throughput", _MANY, _FEW, (*rows, *DATABASE_ROWS), nodes, served, _sides(served)
    )


def _latency(nodes: int, *, served: bool) -> Case:
    return Case(
        f"{_where(nodes, served)}; each one workflow of {{steps}} sequential steps", "latency",
        {"steps": 200}, {"steps": 50}, (*_times("step"), *DATABASE_ROWS), nodes, served,
        _sides(served),
    )  # fmt: skip


def _calls(nodes: int, *, served: bool) -> Case:
    names = ("start", "signal", "update", "workflow") if served else ("start", "signal", "workflow")
    return Case(
        f"{_where(nodes, served)}; each {{times}} calls one after the other",
        "short" if served else "calls",
        {"times": 200}, {"times": 40}, _times(*names), nodes, served, _sides(served),
    )  # fmt: skip


CASES = {
    "a": _throughput(1, served=False),
    "b": _latency(1, served=False),
    "c": _calls(1, served=False),
    "d": _throughput(2, served=False),
    "e": _throughput(4, served=False),
    "f": _throughput(1, served=True),
    "g": _throughput(2, served=True),
    "h": _throughput(4, served=True),
    "i": _latency(1, served=True),
    "j": _calls(1, served=True),
    "b2": _latency(2, served=False),
    "b4": _latency(4, served=False),
    "c2": _calls(2, served=False),
    "c4": _calls(4, served=False),
    "i2": _latency(2, served=True),
    "i4": _latency(4, served=True),
    "j2": _calls(2, served=True),
    "j4": _calls(4, served=True),
    "k": Case(
        "embedded: {times} workflows without steps, with the worker here, and at another node",
        "across", {"times": 200}, {"times": 40}, _times("here", "across"), sides=("perdure",),
    ),
}  # fmt: skip
"""Of the percentiles of several nodes, the table shows the mean."""


def run_together(commands: Sequence[list[str]], base: database.Database, steps: int) -> list[Facts]:
    """Measure in so many processes that begin at once; the first's facts tell of the database."""
    with ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            _line(process, "ready")
        before = base.used()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        facts: list[Facts] = [json.loads(_line(process, "{")) for process in processes]
        facts[0] |= base.used().per(before, steps)
        return facts


def _line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise SystemExit(f"a measured process ended without a result: {process.args}")


def run_case(case: Case, side: str, base: database.Database, size: Size) -> Facts:
    """All the facts of one case on one side, on a new database."""
    sizes = [json.dumps(size | {"gated": 1, "number": n, "pollers": 20}) for n in range(case.nodes)]
    steps = size.get("steps", size.get("times", 1)) * size.get("workflows", 1) * case.nodes
    with ExitStack() as stack:
        if case.served:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
            nodes = [
                stack.enter_context(servers.running("perdure", folder, base.dsn)) for _ in sizes
            ]
            script = [sys.executable, str(HERE / "served_side.py"), "perdure", case.kind]
            commands = [
                [*script, node.address, str(node.pid), own]
                for node, own in zip(nodes, sizes, strict=True)
            ]
        else:
            script = [sys.executable, str(HERE / "side.py"), side, case.kind, base.dsn]
            commands = [[*script, own] for own in sizes]
        found = run_together(commands, base, steps)
    facts = {key: statistics.mean(one.get(key, value) for one in found)
             for key, value in found[0].items()}  # fmt: skip
    if case.kind == "throughput":
        seconds = max(one["end"] for one in found) - min(one["begin"] for one in found)
        facts |= {"steps_per_s": steps / seconds}
        facts |= {"workflows_per_s": size["workflows"] * case.nodes / seconds}
    elif case.kind == "latency":
        facts |= {f"step_{part}": facts[part] for part in ("p50_ms", "p99_ms")}
    return facts


def measure_all(
    arguments: argparse.Namespace, server: database.PostgresServer, console: Console
) -> list[dict[str, Any]]:
    """Every case: one result per side, the sides taking turns."""
    results = []
    for name in arguments.cases or CASES:
        case = CASES[name]
        size = case.quick if arguments.quick else case.size
        sides = [side for side in arguments.sides if side in case.sides]
        taken: dict[str, list[Facts]] = {side: [] for side in sides}
        for turn in range(arguments.repeat):
            for side in sides:
                console.print(f"({name}) {side}, turn {turn + 1}", style="dim")
                with database.created(server, f"bench_{name}_{side}_{turn}") as base:
                    facts = run_case(case, side, base, size)
                console.print(f"    {facts}", style="dim")
                taken[side].append(facts)
        medians = {side: _medians(facts) for side, facts in taken.items()}
        results.append({"case": name, "size": size, "sides": medians})
    return results


def _medians(taken: list[Facts]) -> Facts:
    return {key: statistics.median(facts[key] for facts in taken) for key in taken[0]}


def table_of(results: list[dict[str, Any]], sides: list[str]) -> Table:
    """The results as a table; a ratio over 1 says how many times better perdure is."""
    table = Table("", "work", "measure", *sides, "ratio")
    for result in results:
        case = CASES[result["case"]]
        head = (f"({result['case']})", case.title.format(**result["size"]))
        for row in case.rows:
            values = [result["sides"].get(side, {}).get(row.key) for side in sides]
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
    parser.add_argument("--repeat", type=int, default=3, help="turns, default 3")
    parser.add_argument("--sides", nargs="+", default=["perdure", "dbos"])
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        machine = measure.machine(Path(name))
    machine |= {side: version(side) for side in arguments.sides}
    with database.running() as server:
        with database.created(server, "named") as base, base.session() as session:
            row = session.execute("SHOW server_version").fetchone()
            machine["postgres"] = row[0] if row else ""
        results = measure_all(arguments, server, Console(stderr=True))
    out = Console(width=max(140, Console().width))
    for key, value in machine.items():
        out.print(f"{key:8} {value}")
    out.print(table_of(results, arguments.sides))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
