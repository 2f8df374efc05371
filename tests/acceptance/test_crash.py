"""The real program, really killed: see examples/crash_test.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "crash_test.py"
KILLS = 300


@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", str(KILLS), "--keep", str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=880)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(r"(\d+) kills in (\d+) rounds", done.stdout)
    assert summary is not None, done.stdout
    assert int(summary[1]) == KILLS
    print(done.stdout)
