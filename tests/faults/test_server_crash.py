"""A server process that is really killed, under official-SDK workers and clients in others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from . import diary, siege
from .check import check

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


def _read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _first(lines: list[Line], kind: str) -> Line:
    return next(line for line in lines if line["kind"] == kind)
