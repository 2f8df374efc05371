"""``perdure workflow …`` on a database file, as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cli_stage import Stage


@contextmanager
def worker(stage: Stage) -> Iterator[subprocess.Popen[str]]:
    """A worker that holds the file, until the end of the block."""
    process = stage.start("worker", "program")
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "working on" in line:
                break
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def wait_for_status(stage: Stage, workflow_id: str, status: str) -> None:
    for _ in range(100):
        if stage.workflow("describe", workflow_id, "--json").json["status"] == status:
            return
        time.sleep(0.1)
    pytest.fail(f"{workflow_id} never became {status}")


def test_a_workflow_from_its_start_to_its_result(stage: Stage) -> None:
    started = stage.workflow("start", "doubled", "-i", "21", "-w", "d-1", "--json").json
    assert started["workflow_id"] == "d-1"
    (listed,) = stage.workflow("list", "--json").json
    assert (listed["id"], listed["run_id"]) == ("d-1", started["run_id"])
    assert (listed["status"], listed["workflow_type"]) == ("RUNNING", "doubled")
    running = stage.workflow("result", "d-1")
    assert running.code == 1
    assert "still running" in running.error
    with worker(stage):
        assert stage.workflow("result", "d-1", "--wait", "--json").json == 42
    described = stage.workflow("describe", "d-1", "--json").json
    assert described["status"] == "COMPLETED"
    assert described["history_length"] == 11
    assert described["pending_activities"] == []


def test_the_result_of_a_run_that_continued_as_new_is_that_of_the_last_one(stage: Stage) -> None:
    first = stage.workflow("start", "twice", "-i", "true", "-w", "t", "--json").json["run_id"]
    with worker(stage):
        found = stage.workflow("result", "t", "--run-id", first, "--wait", "--json")
    assert found.json == "the end"
    assert found.err == "t is still running, on task queue default\n"
    assert stage.workflow("result", "t", "--run-id", first).out == "the end\n"


def test_tables_for_people(file_stage: Stage) -> None:
    file_stage.workflow("execute", "doubled", "-i", "4", "-w", "d-1", "-m", "program.py")
    head, row = file_stage.workflow("list").out.splitlines()
    assert head.split()[:2] == ["STATUS", "WORKFLOW"]
    assert row.split()[:3] == ["Completed", "d-1", "doubled"]
    shown = file_stage.workflow("show", "d-1").out
    assert "ActivityTaskScheduled double 1" in " ".join(shown.split())
    assert [line.split()[0] for line in shown.splitlines()[1:]] == [str(n) for n in range(1, 12)]
    assert file_stage.workflow("result", "d-1").out == "8\n"
    assert "workflow type       doubled" in file_stage.workflow("describe", "d-1").out
    assert file_stage.workflow("count").out.strip() == "1"


def test_a_failed_workflow_is_told_with_its_cause(file_stage: Stage) -> None:
    done = file_stage.workflow("execute", "doubled", "-i", "-1", "-w", "d-1", "-m", "program")
    assert done.code == 1
    assert "n: must not be negative" in done.error
    assert "n: must not be negative" in file_stage.workflow("result", "d-1").error


def test_signal_query_update_without_a_worker_of_their_own(stage: Stage) -> None:
    stage.workflow("start", "Counter", "-w", "c")
    assert stage.workflow("signal", "c", "add", "-i", "5").code == 0
    if not stage.is_shared:
        refused = stage.workflow("query", "c", "now")
        assert (refused.code, "--module" in refused.error) == (2, True)
    assert stage.workflow("query", "c", "now", "-m", "program", "--json").json == 5
    assert stage.workflow("update", "c", "set", "-i", "7", "-m", "program", "--json").json == 5
    rejected = stage.workflow("update", "c", "set", "-i", "-7", "-m", "program")
    assert rejected.code == 1
    assert "n: must not be negative" in rejected.error
    assert stage.workflow("query", "c", "now", "-m", "program").out == "7\n"
    unknown = stage.workflow("query", "c", "nothing", "-m", "program")
    assert unknown.code == 1
    assert "nothing" in unknown.error


def test_reading_works_beside_a_worker_and_writing_says_who_has_the_file(file_stage: Stage) -> None:
    file_stage.workflow("start", "Counter", "-w", "c")
    with worker(file_stage) as process:
        assert file_stage.workflow("count", "--json").json == {"count": 1, "groups": []}
        assert file_stage.workflow("show", "c", "--json").code == 0
        refused = file_stage.workflow("signal", "c", "close")
        assert refused.code == 1
        assert f"process {process.pid}" in refused.error
        assert file_stage.workflow("describe", "c", "--json").json["status"] == "RUNNING"
    assert file_stage.workflow("signal", "c", "close").code == 0
    with worker(file_stage):
        wait_for_status(file_stage, "c", "COMPLETED")


def test_ending_workflows(stage: Stage) -> None:
    for name in ("cancelled", "terminated", "deleted"):
        stage.workflow("start", "Counter", "-w", name)
    assert stage.workflow("cancel", "cancelled", "--reason", "why not").code == 0
    assert stage.workflow("terminate", "terminated", "--reason", "enough").code == 0
    assert stage.workflow("terminate", "deleted").code == 0
    assert stage.workflow("delete", "deleted").code == 0
    counted = stage.workflow("count", "--query", "GROUP BY ExecutionStatus", "--json").json
    groups = {group["values"][0]: group["count"] for group in counted["groups"]}
    assert groups == {"Running": 1, "Terminated": 1}
    with worker(stage):
        wait_for_status(stage, "cancelled", "CANCELED")
    ended = stage.workflow("signal", "terminated", "add", "-i", "1")
    assert ended.code == 1
    assert "terminated" in ended.error


def test_reset_starts_again_from_an_event(stage: Stage) -> None:
    stage.workflow("execute", "doubled", "-i", "3", "-w", "d", "-m", "program")
    first = stage.workflow("describe", "d", "--json").json["run_id"]
    made = stage.workflow("reset", "d", "--to", "first", "--reason", "again", "--json").json
    assert made["run_id"] != first
    with worker(stage):
        assert stage.workflow("result", "d", "--wait", "--json").json == 6
    wrong = stage.workflow("reset", "d", "--to", "middle")
    assert (wrong.code, "--to" in wrong.error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["list", "--db", "none.db"], 1, "none.db"),
        (["list", "--db", "none/none.db"], 1, "none.db"),
        (["start", "doubled", "--db", "none/none.db"], 1, "none"),
        (["list", "--db", "memory://"], 2, "--db"),
        (["list", "--db", "nonsense://x"], 2, "nonsense"),
        (["list", "--query", "WorkflowType >"], 1, "column"),
        (["list", "--namespace", "nobody"], 1, "nobody"),
        (["describe", "nobody"], 1, "nobody"),
        (["signal", "nobody", "x"], 1, "nobody"),
        (["start", "doubled", "-i", "{"], 2, "--input 1"),
        (["start", "doubled", "-i", "abc"], 2, "quotes"),
        (["start", "doubled", "--id-conflict-policy", "maybe"], 2, "--id-conflict-policy"),
        (["start", "doubled", "--memo", "x"], 2, "--memo"),
        (["start", "doubled", "-w", "x" * 1001], 1, "1001"),
        (["execute", "doubled", "-m", "no_such_module"], 2, "no_such_module"),
    ],
)
def test_a_mistake_is_one_clear_line(
    file_stage: Stage, arguments: list[str], code: int, words: str
) -> None:
    file_stage.workflow("start", "Counter", "-w", "there")
    done = file_stage.workflow(*arguments)
    assert done.code == code
    assert words in done.error
    (there,) = file_stage.workflow("list", "--json").json
    assert there["id"] == "there"


def test_typer_finds_wrong_options_itself(file_stage: Stage) -> None:
    done = file_stage.workflow("list", "--no-such-option")
    assert done.code == 2
    assert "--no-such-option" in done.err


def test_a_second_start_of_an_open_id_is_refused_or_joined(file_stage: Stage) -> None:
    first = file_stage.workflow("start", "Counter", "-w", "c", "--json").json["run_id"]
    assert "already" in file_stage.workflow("start", "Counter", "-w", "c").error
    again = ("start", "Counter", "-w", "c", "--id-conflict-policy", "use_existing", "--json")
    assert file_stage.workflow(*again).json["run_id"] == first


def test_memo_is_stored(file_stage: Stage) -> None:
    file_stage.workflow("start", "Counter", "-w", "c", "--memo", "why=[1, 2]")
    assert file_stage.workflow("describe", "c", "--json").json["memo"] == {"why": [1, 2]}


def test_show_as_json_is_a_history_that_replays(file_stage: Stage) -> None:
    file_stage.workflow("execute", "doubled", "-i", "3", "-w", "d", "-m", "program")
    history = file_stage.workflow("show", "d", "--json")
    assert len(history.json["events"]) == 11
    (file_stage.folder / "d.json").write_text(history.out)
    good = file_stage.run("replay", "d.json", "program", "--json")
    assert good.code == 0
    assert good.json == [{"history": "d.json", "replays": True, "error": None}]
    changed = (
        (file_stage.folder / "program.py")
        .read_text()
        .replace("return await double(n)", "return await double(n) + await double(n + 1)")
    )
    (file_stage.folder / "program.py").write_text(changed)
    bad = file_stage.run("replay", "d.json", "program", "--json")
    assert bad.code == 1
    assert bad.json[0]["replays"] is False


def test_replay_of_what_is_no_history(file_stage: Stage) -> None:
    (file_stage.folder / "x.json").write_text(json.dumps({"no": "events"}))
    done = file_stage.run("replay", "x.json", "program")
    assert done.code == 1
    assert "events" in done.out
    assert file_stage.run("replay", "missing.json", "program").code == 2
    assert file_stage.run("replay", "x.json").code == 2
