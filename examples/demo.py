"""Kill the orders example with SIGKILL in the middle of its work, and see it go on.

python examples/demo.py [--orders 60]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def start(folder: Path, orders: int) -> subprocess.Popen[str]:
    """Start the example as a user would, with its output to read from."""
    command = [sys.executable, str(HERE / "orders.py"), "--orders", str(orders)]
    command += ["--db", f"sqlite:///{folder / 'orders.db'}"]
    environment = os.environ | {
        "OUTSIDE_BOOKS": str(folder / "books.jsonl"),
        "OUTSIDE_SLOWNESS_S": "1.0",
        "PYTHONUNBUFFERED": "1",
    }
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )


def follow(process: subprocess.Popen[str], lines: int | None) -> int:
    """Print what it says, up to so many lines; how many there were."""
    assert process.stdout is not None
    count = 0
    for line in process.stdout:
        print(line, end="", flush=True)
        count += 1
        if count == lines:
            break
    return count


def show_state(folder: Path) -> None:
    """What the database holds, as the perdure command tells it."""
    command = [sys.executable, "-m", "perdure.cli", "workflow", "count"]
    command += ["--query", "GROUP BY ExecutionStatus", "--db", str(folder / "orders.db")]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--orders", type=int, default=40)
    orders = parser.parse_args().orders
    with tempfile.TemporaryDirectory(prefix="perdure-demo-") as name:
        folder = Path(name)
        print(f"$ python examples/orders.py --orders {orders}")
        process = start(folder, orders)
        follow(process, orders // 3)
        process.kill()
        process.wait()
        print(f"$ kill -9 {process.pid}          # in the middle of everything\n")
        print("$ perdure workflow count --query 'GROUP BY ExecutionStatus'")
        show_state(folder)
        print(f"\n$ python examples/orders.py --orders {orders}          # the same again")
        begin = time.monotonic()
        process = start(folder, orders)
        follow(process, None)
        code = process.wait()
        print(f"\ngone on and finished in {time.monotonic() - begin:.1f} s; {charges(folder)}")
        sys.exit(code)


def charges(folder: Path) -> str:
    """Count in the books of the payment service, which perdure knows nothing of."""
    import json

    entries = [json.loads(line) for line in (folder / "books.jsonl").read_text().splitlines()]
    deeds = [e for e in entries if e["kind"] == "deed" and e["service"] == "payments"]
    taken = [e["key"] for e in deeds if e["cents"] > 0]
    back = [e["key"] for e in deeds if e["cents"] < 0]
    twice = len(taken) - len(set(taken))
    return (
        f"the payment service took {len(taken)} payments, {twice} twice, and gave {len(back)} back"
    )


if __name__ == "__main__":
    main()
