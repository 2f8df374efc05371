"""The types of the public face, as a type checker sees them from a user's code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_mypy_knows_the_types_of_user_code(tmp_path: Path) -> None:
    """`assert_type` proves what is exact; unused ignores would show mistakes that go unseen."""
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"]
    command += ["--config-file", "", "--cache-dir", str(tmp_path), str(HERE / "user_code.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
