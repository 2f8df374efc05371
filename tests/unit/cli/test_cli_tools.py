"""``perdure worker``, ``perdure lint``, ``perdure`` itself; and what every command prints with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from enum import Enum

import pytest
from cli_stage import Stage

from perdure.cli.failing import Failed, Misused, one_line_errors
from perdure.cli.output import Output, cell, plain


def test_help_imports_nothing_of_the_engine() -> None:
    code = (
        "import sys\n"
        "from perdure.cli import main\n"
        "try: sys.argv = ['perdure', '--help']; main()\n"
        "except SystemExit: pass\n"
        "bad = [m for m in sys.modules if m.startswith(('perdure.service', 'perdure.engine'))]\n"
        "print('LOADED', bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "workflow" in done.stdout
    assert "LOADED []" in done.stdout


def test_version(file_stage: Stage) -> None:
    assert file_stage.run("--version").out.strip().count(".") == 2


def test_lint_finds_what_does_not_replay(file_stage: Stage) -> None:
    assert file_stage.run("lint", "program.py").code == 0
    (file_stage.folder / "wrong.py").write_text(
        "import time\nfrom perdure import workflow\n\n"
        "@workflow\nasync def slow() -> None:\n    time.sleep(5)\n"
    )
    done = file_stage.run("lint", ".", "--json")
    assert done.code == 1
    (finding,) = done.json
    assert (finding["line"], finding["rule"]) == (6, "sleep")
    assert "wrong.py:6" in file_stage.run("lint", "wrong.py").out
    missing = file_stage.run("lint", "nowhere.py")
    assert (missing.code, "nowhere.py" in missing.error) == (2, True)
    (file_stage.folder / "broken.py").write_text("def (")
    broken = file_stage.run("lint", "broken.py")
    assert broken.code == 1
    assert "broken.py" in broken.error


def test_a_worker_can_run_a_part_of_a_module(file_stage: Stage) -> None:
    for spec, words in (("program:nothing", "nothing"), ("program:PROGRAM", "PROGRAM")):
        done = file_stage.run("worker", spec)
        assert (done.code, words in done.error) == (2, True), done.err
    process = file_stage.start("worker", "program:only_double")
    assert process.stderr is not None
    assert any("working on" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_a_second_worker_is_told_who_has_the_file(file_stage: Stage) -> None:
    process = file_stage.start("worker", "program")
    assert process.stderr is not None
    assert any("working on" in line for line in process.stderr)
    second = file_stage.run("worker", "program")
    assert second.code == 1
    assert f"process {process.pid}" in second.error
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Misused("--to: what?"), 2, "error: --to: what?\n"),
        (Failed("no\nsuch thing"), 1, "error: no such thing\n"),
        (FileNotFoundError(2, "No such file or directory", "x.db"), 1,
         "error: x.db: No such file or directory\n"),
        (KeyError("lost"), 1, "error: KeyError: 'lost' (set PERDURE_DEBUG=1 for the traceback)\n"),
    ],
)  # fmt: skip
def test_errors_end_as_one_line(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == line


class Colour(Enum):
    DARK_RED = 1


def test_values_as_json_and_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "when": datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
        "long": timedelta(seconds=90),
        "colour": Colour.DARK_RED,
        "bytes": b"\x01\xff",
        "nothing": None,
        "error": ValueError("bad"),
    }
    Output(as_json=True).record(record)
    assert json.loads(capsys.readouterr().out) == {
        "when": "2026-01-02T03:04:05.000678+00:00",
        "long": 90.0,
        "colour": "DARK_RED",
        "bytes": "01ff",
        "nothing": None,
        "error": "bad",
    }
    assert cell(record["when"]) == "2026-01-02 03:04:05"
    assert cell(Colour.DARK_RED) == "Dark red"
    assert cell(None) == ""
    assert plain({1}) == [1]
    Output(as_json=False).record({"one_word": "x", "empty": None})
    assert capsys.readouterr().out == "one word  x\n"
