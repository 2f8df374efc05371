"""The orders example, killed half-way and started again, before your eyes.

    python examples/demo.py

The orders run in a process of their own. When half of them are done, it is killed with SIGKILL: no
goodbye, no cleaning up. A second process opens the same database and goes on. At the end the books
of the payment and parcel services are counted: every order was charged once and shipped once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import outside

ORDERS = 20


def start(folder: Path) -> subprocess.Popen[str]:
    """The orders example in a process of its own."""
    script = Path(__file__).with_name("orders.py")
    command = [sys.executable, str(script), "--db", f"sqlite:///{folder}/orders.db"]
    environment = os.environ | {outside.BOOKS_VARIABLE: str(folder / "books.jsonl")}
    return subprocess.Popen(
        [*command, "--orders", str(ORDERS)], stdout=subprocess.PIPE, text=True, env=environment
    )


def follow(process: subprocess.Popen[str], until: str) -> None:
    """Show what the process prints, up to a line that contains `until`."""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if until and until in line:
            return


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{ORDERS} orders: charge, ship, wait, ask for a review. Each service fails one call")
        print("in five. The first process:")
        first = start(folder)
        follow(first, until=f"({ORDERS // 2}/{ORDERS})")
        first.send_signal(signal.SIGKILL)
        first.wait()
        print(f"\nkill -9 {first.pid}. The second process, on the same database:")
        second = start(folder)
        follow(second, until="")
        if second.wait() != 0:
            return 1
        return count(folder)


def count(folder: Path) -> int:
    """Say what the services' books hold; 1 if an order was charged or shipped twice."""
    books = (folder / "books.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in books]
    calls = sum(entry["kind"] == "call" for entry in entries)
    deeds = Counter(
        (entry["service"], entry["key"]) for entry in entries if entry["kind"] == "deed"
    )
    charged = sum(1 for service, key in deeds if service == "payments" and "refund" not in key)
    refunded = sum(1 for service, key in deeds if service == "payments" and "refund" in key)
    shipped = sum(1 for service, _ in deeds if service == "parcels")
    print(f"\nThe services' books: {calls} calls, of which some failed; {charged} orders charged,")
    print(f"{shipped} shipped, {refunded} refunded because nobody delivers there.")
    return int(charged != ORDERS or shipped + refunded != ORDERS or max(deeds.values()) > 1)


if __name__ == "__main__":
    sys.exit(main())
