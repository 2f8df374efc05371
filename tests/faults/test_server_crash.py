"""A server process that is really killed, under official-SDK workers and clients in others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import crash_check
from crash_check import Stored
from perdure.store.sqlite import open_read_only

from . import diary, siege
from .check import DATABASE, balance_faults, check, steps_done_twice

KILLS = 3

Line = dict[str, Any]


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> tuple[siege.Tally, Path]:
    """What a few kills came to, and the folder of the round."""
    base = tmp_path_factory.mktemp("siege") / "rounds"
    return siege.besiege(KILLS, seed=11, keep=base), base / "round-0"


@pytest.mark.timeout(240)
def test_every_run_ends_right_though_the_server_is_killed(
    besieged: tuple[siege.Tally, Path],
) -> None:
    tally, _ = besieged
    assert not tally.faults, tally.faults[0]
    assert tally.kills == KILLS
    assert tally.rounds == 1
    assert tally.told > 0
    assert tally.executions > 0


# --- the checker's own eyes: it must see what it looks for --------------------------------------


@pytest.mark.timeout(240)
async def test_what_is_lost_or_done_twice_is_found(
    besieged: tuple[siege.Tally, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "round"
    shutil.copytree(besieged[1], folder)
    told = _read(folder / diary.FILE)
    _first(told, "start")["run_id"] = "00000000-0000-0000-0000-000000000000"
    _first(told, "signal")["arguments"] = ["a word that nobody sent"]
    _first(told, "update")["answer"] = 1_000_000
    _first(told, "result")["value"] = "something else"
    _write(folder / diary.FILE, told)
    calls = _read(folder / "books.jsonl")
    gone = calls[0]["run_id"], calls[0]["activity_id"]
    calls = [call for call in calls if (call["run_id"], call["activity_id"]) != gone]
    _write(folder / "books.jsonl", [*calls, calls[0]])
    wrong = (await check(folder)).wrong
    for words in (
        "the run that was started is not there",
        "the signal is in history 0 times",
        "the answers in history are",
        "the results in history are",
        "ran 2 times",
        "it never ran",
    ):
        assert any(words in fault for fault in wrong), (words, wrong)


async def test_a_record_that_is_not_whole_is_found(besieged: tuple[siege.Tally, Path]) -> None:
    runs = await crash_check.read_all(open_read_only(besieged[1] / DATABASE))
    for run in runs:
        assert not crash_check.record_faults(run)
        gap = Stored(run.loaded, [*run.events[:1], *run.events[2:]])
        assert "not contiguous" in crash_check.record_faults(gap)[0]
        behind = Stored(run.loaded, run.events[:-1])
        assert "not its replay" in crash_check.record_faults(behind)[0]
    assert not steps_done_twice(runs)
    assert "completed 2 times" in steps_done_twice([*runs, *runs])[0]


def test_an_account_that_does_not_add_up_is_found(besieged: tuple[siege.Tally, Path]) -> None:
    told = _read(besieged[1] / diary.FILE)
    assert not balance_faults(told)
    deposits = (line for line in told if line.get("name") == "deposit")
    told.remove(next(line for line in deposits if line["arguments"][1] > 0))
    assert len(balance_faults(told)) == 1


def _read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _first(lines: list[Line], kind: str) -> Line:
    return next(line for line in lines if line["kind"] == kind)
