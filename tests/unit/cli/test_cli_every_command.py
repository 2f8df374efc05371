"""Every ``perdure workflow`` command for people and for programs, and how mistakes end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from cli_stage import PROGRAM, Done, Stage

ATTRIBUTES = """
from perdure import SearchAttributeKey

@workflow
async def labelled(n: int) -> dict[str, int]:
    workflow.upsert_search_attributes({
        SearchAttributeKey.int("Number"): n, SearchAttributeKey.keyword_list("Tags"): ["a", "b"],
    })
    return {"n": n}
"""


@pytest.fixture
def played(stage: Stage) -> Stage:
    """A completed run 'd' of three, an open one 'c', and one 'f' that failed."""
    (stage.folder / "program.py").write_text(PROGRAM + ATTRIBUTES)
    assert stage.workflow("execute", "doubled", "-i", "4", "-w", "d", "-m", "program").code == 0
    assert stage.workflow("execute", "doubled", "-i", "-4", "-w", "f", "-m", "program").code == 1
    assert stage.workflow("execute", "labelled", "-i", "7", "-w", "l", "-m", "program").code == 0
    assert stage.workflow("start", "Counter", "-w", "c").code == 0
    return stage


COMMANDS: list[tuple[list[str], str, Any]] = [
    # the command, what people see (a pattern), what programs get (a part of it)
    (["list"], r"STATUS +WORKFLOW ID +TYPE", [{"id": "c"}, {"id": "l"}, {"id": "f"}, {"id": "d"}]),
    (["list", "--query", "ORDER BY WorkflowId", "--limit", "2"], r" c .*\n.* d ",
     [{"id": "c"}, {"id": "d"}]),
    (["list", "--query", "Number = 7 AND Tags = 'b'"], r" l ", [{"id": "l"}]),
    (["list", "--query", "WorkflowId = 'none'"], r"STATUS", []),
    (["count"], r"^4$", {"count": 4}),
    (["count", "--query", "GROUP BY ExecutionStatus"], r"4  in all",
     {"count": 4, "groups": [{"count": 2}, {"count": 1}, {"count": 1}]}),
    (["describe", "d"], r"status +Completed", {"id": "d", "status": "COMPLETED"}),
    (["describe", "l"], r'search attributes +.*"Number": 7',
     {"search_attributes": {"Number": 7, "Tags": ["a", "b"]}}),
    (["show", "d"], r"EVENT +TIME \(UTC\) +TYPE +DETAILS *\n1 ", {"events": [{"eventId": "1"}]}),
    (["show", "d", "--reverse"], r"DETAILS *\n11 ", {"events": [{"eventId": "1"}]}),
    (["result", "d"], r"^8$", 8),
    (["result", "l"], r'"n": 7', {"n": 7}),
    (["start", "doubled", "-i", "1"], r"started .*, run ", {"workflow_id": str, "run_id": str}),
    (["execute", "doubled", "-i", "5", "-m", "program"], r"^10$", 10),
    (["signal", "c", "add", "-i", "2"], "signalled c", {"workflow_id": "c", "signal": "add"}),
    (["query", "c", "now", "-m", "program"], "^4$", 4),
    (["update", "c", "set", "-i", "3", "-m", "program"], "^4$", 4),
    (["cancel", "c", "--reason", "x"], "asked c to cancel", {"workflow_id": "c"}),
    (["pause", "c"], "paused c", {"workflow_id": "c"}),
    (["unpause", "c"], "unpaused c", {"workflow_id": "c"}),
    (["reset", "d", "--to", "first"], "reset d: it goes on as run", {"run_id": str}),
    (["terminate", "c"], "terminated c", {"workflow_id": "c"}),
    (["delete", "d"], "deleted d", {"workflow_id": "d"}),
]  # fmt: skip


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(_contains(whole.get(k), v) for k, v in part.items())
    if isinstance(part, list) and part:
        return isinstance(whole, list) and all(
            _contains(a, b) for a, b in zip(whole, part, strict=False)
        )
    if isinstance(part, type):
        return isinstance(whole, part)
    return bool(whole == part)


def _ran(stage: Stage, arguments: list[str]) -> Done:
    done = stage.workflow(*arguments)
    assert done.code == 0, done.err
    assert "error" not in done.err
    return done


def test_every_command_has_both_outputs(played: Stage) -> None:
    names = {arguments[0] for arguments, _, _ in COMMANDS}
    help_text = played.workflow("--help").out
    assert names == set(re.findall(r"^[│ ]+([a-z]+)  +[A-Z]", help_text, re.MULTILINE))
    ending = ("terminate", "delete")
    for arguments, pattern, part in COMMANDS:
        if arguments[0] in ending:
            played.workflow("start", "Counter", "-w", arguments[1])  # one that may be ended
        shown = _ran(played, arguments)
        assert re.search(pattern, shown.out, re.MULTILINE), (arguments, shown.out)
        if arguments[0] in ending:
            played.workflow("start", "Counter", "-w", arguments[1])
        if arguments[0] in ("pause", "unpause"):  # each can be done once
            played.workflow("unpause" if arguments[0] == "pause" else "pause", "c")
        if arguments[0] == "reset":  # a run that was just reset has no such point yet
            arguments = ["reset", "f", "--to", "first"]
        value = _ran(played, [*arguments, "--json"]).json
        if arguments[0] == "update":
            assert value == 3  # what the first call had set
            continue
        assert _contains(value, part), (arguments, value)


MISTAKES: list[tuple[list[str], int, str]] = [
    (["workflow", "signal", "d", "add", "-i", "1"], 1, "completed"),
    (["workflow", "terminate", "f"], 1, "completed"),
    (["workflow", "result", "f"], 1, "n: must not be negative"),
    (["workflow", "result", "c"], 1, "--wait"),
    (["workflow", "query", "d", "nope", "-m", "program"], 1, "nope"),
    (["workflow", "update", "c", "set", "-i", "x", "-m", "program"], 2, '-input 1'),
    (["workflow", "reset", "d", "--to", "77"], 1, "last event ID"),
    (["workflow", "describe", "d", "-r", "no-uuid"], 1, "RunId"),
    (["workflow", "start", "doubled", "--id-reuse-policy", "maybe"], 2, "reject_duplicate"),
    (["workflow", "start", "doubled", "--memo", "novalue"], 2, "KEY=JSON"),
    (["workflow", "list", "--query", "ORDER BY"], 1, "column"),
    (["worker", "no_such_module"], 2, "no_such_module"),
    (["replay", "nothing.json", "program"], 2, "nothing.json"),
    (["lint", "nothing.py"], 2, "nothing.py"),
]  # fmt: skip


ON_A_FILE: list[tuple[list[str], int, str]] = [
    (["workflow", "query", "c", "now"], 2, "--module"),
    (["workflow", "update", "c", "set", "-i", "x"], 2, "--module"),
]


def test_a_mistake_goes_to_stderr_and_changes_nothing(played: Stage) -> None:
    before = played.workflow("list", "--json").json
    for arguments, code, words in MISTAKES + ([] if played.is_shared else ON_A_FILE):
        for extra in ([], ["--json"]):
            if extra and arguments[0] == "worker":
                continue
            done = played.run(*arguments, *extra)
            assert done.code == code, (arguments, done.out, done.err)
            assert words in done.error, (arguments, done.error)
            assert done.out == "", arguments
    assert played.workflow("list", "--json").json == before


def _process(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perdure.cli", *arguments],
        cwd=stage.folder,
        env=stage.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_as_processes_of_their_own(file_stage: Stage) -> None:
    played = file_stage
    assert played.workflow("execute", "doubled", "-i", "4", "-w", "d", "-m", "program").code == 0
    history = _process(played, "workflow", "show", "d", "--json")
    assert (history.returncode, history.stderr) == (0, "")
    (played.folder / "d.json").write_text(history.stdout)
    good = _process(played, "replay", "d.json", "program")
    assert (good.returncode, good.stdout, good.stderr) == (0, "d.json: replays\n", "")
    missing = _process(played, "workflow", "describe", "nobody", "--json")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("error: ")
    assert "nobody" in missing.stderr
    clean = _process(played, "lint", "program.py", "--json")
    assert (clean.returncode, json.loads(clean.stdout), clean.stderr) == (0, [], "")


WRONG = """
import os, random, sys, threading, time
import requests

from perdure import workflow

SEEN: list[int] = []

@workflow
async def wrong() -> None:
    SEEN.append(1)
    requests.get("http://x")
    random.SystemRandom().random()
    time.sleep(1)
    threading.Thread(target=print).start()
    os.environ["X"]
    for x in {"a", "b"}:
        pass

    try:
        pass
    except BaseException:
        pass
"""


def test_lint_knows_every_rule_of_the_docs(file_stage: Stage) -> None:
    (file_stage.folder / "wrong.py").write_text(WRONG)
    done = file_stage.run("lint", "wrong.py", "--json")
    assert done.code == 1
    assert {finding["rule"] for finding in done.json} == {
        "io", "random", "sleep", "thread", "environment", "set-order", "global-state",
        "swallowed-cancel",
    }  # fmt: skip
    assert f"{len(done.json)} findings" in done.error
    people = file_stage.run("lint", "wrong.py")
    for finding in done.json:
        assert f"wrong.py:{finding['line']}:" in people.out
    (file_stage.folder / "wrong.py").write_text(WRONG.replace(
        "async def wrong() -> None:", "async def wrong() -> None:  # perdure: ignore"
    ))  # fmt: skip
    assert file_stage.run("lint", "wrong.py").code == 0
