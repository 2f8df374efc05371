"""What ``perdure lint`` finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.sdk.lint import RULES, lint_paths, lint_source

HEAD = """
import asyncio, os, random, threading, subprocess, requests, time
import concurrent.futures
from time import sleep, monotonic
from datetime import datetime
from pathlib import Path
from perdure import activity, workflow
import perdure

CACHE = {}
LIMIT: int = 3

"""


def rules(body: str, decorator: str = "@workflow") -> list[str]:
    """Rules found in a workflow with this body."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    return [f.rule for f in lint_source(f"{HEAD}{decorator}\nasync def run(x):\n{indented}\n")]


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("open('x')", "io"),
        ("requests.get('x')", "io"),
        ("requests.Session().get('x')", "io"),
        ("Path('x').read_text()", "io"),
        ("await asyncio.open_connection('h', 1)", "io"),
        ("time.sleep(1)", "sleep"),
        ("sleep(1)", "sleep"),
        ("await asyncio.to_thread(print)", "thread"),
        ("asyncio.get_running_loop().run_in_executor(None, print)", "thread"),
        ("threading.Thread(target=print)", "thread"),
        ("subprocess.run(['ls'])", "thread"),
        ("concurrent.futures.ThreadPoolExecutor()", "thread"),
        ("return os.environ['HOME']", "environment"),
        ("return os.environ.get('HOME')", "environment"),
        ("return os.getenv('HOME')", "environment"),
        ("random.SystemRandom()", "random"),
        ("for n in {1, 2}: pass", "set-order"),
        ("for n in set(x): pass", "set-order"),
        ("names = set(x)\nreturn [n for n in names]", "set-order"),
        ("CACHE[x] = 1", "global-state"),
        ("CACHE.update(a=1)", "global-state"),
        ("del CACHE[x]", "global-state"),
        ("global LIMIT\nLIMIT = 4", "global-state"),
        ("try:\n  await f()\nexcept:\n  pass", "swallowed-cancel"),
        ("try:\n  await f()\nexcept BaseException:\n  pass", "swallowed-cancel"),
        (
            "try:\n  await f()\nexcept (KeyError, BaseException):\n  pass",
            "swallowed-cancel",
        ),
    ],
)
def test_what_is_found(body: str, rule: str) -> None:
    assert rules(body) == [rule]
    assert RULES[rule]


@pytest.mark.parametrize(
    "body",
    [
        "return random.random()",
        "return time.time()",
        "return datetime.now()",
        "return monotonic()",  # mended when the workflow is decorated
        "await asyncio.sleep(1)",
        "return sorted({1, 2})",
        "for n in sorted(set(x)): pass",
        "return x in {1, 2}",
        "CACHE = {}\nCACHE[x] = 1",
        "return LIMIT",
        "try:\n  await f()\nexcept BaseException:\n  await g()\n  raise",
        "try:\n  await f()\nexcept Exception:\n  pass",
        "with workflow.unsafe():\n  open('x')",
        "with perdure.workflow.unsafe():\n  open('x')",
        "return workflow.side_effect(lambda: os.getenv('HOME'))",
        "open('x')  # perdure: ignore",
        "open('x')  # perdure: ignore[io]",
        "open('x')  # perdure: ignore[sleep, io]",
        "return x.open()",
    ],
)
def test_what_is_left_alone(body: str) -> None:
    assert rules(body) == []


def test_an_ignored_rule_leaves_the_others() -> None:
    assert rules("open(os.getenv('X'))  # perdure: ignore[io]") == ["environment"]


@pytest.mark.parametrize("decorator", ["@workflow", "@workflow(name='x')", "@perdure.workflow"])
def test_every_form_of_the_decorator(decorator: str) -> None:
    assert rules("open('x')", decorator) == ["io"]


def test_activities_and_plain_functions_are_left_alone() -> None:
    for decorator in ("@activity", "@activity(name='x')", "@perdure.activity", "@staticmethod"):
        assert rules("open('x')", decorator) == []


def test_a_def_can_be_ignored_as_a_whole() -> None:
    source = f"{HEAD}@workflow\nasync def run():  # perdure: ignore\n    open('x')\n"
    assert lint_source(source) == []


def test_helpers_of_the_module_are_followed_but_not_activities() -> None:
    source = f"""{HEAD}
@activity
def load():
    return open('allowed')

def helper():
    return deeper()

def deeper():
    return open('found')

def unused():
    return open('not looked at')

class Helper:
    def __init__(self):
        os.getenv('found')

@workflow
class Flow:
    @workflow.run
    async def run(self):
        await load()
        helper()
        Helper()

    @workflow.signal
    def poke(self):
        time.sleep(1)
"""
    found = lint_source(source, "flow.py")
    assert sorted(finding.rule for finding in found) == ["environment", "io", "sleep"]
    io = next(finding for finding in found if finding.rule == "io")
    lines = source.splitlines()
    assert "open('found')" in lines[io.line - 1]
    assert lines[io.line - 1][io.column - 1 :].startswith("open(")
    assert str(io).startswith(f"flow.py:{io.line}:{io.column}: io: open() in workflow code; do it")


def test_paths_are_walked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden").mkdir()
    source = f"{HEAD}@workflow\nasync def run():\n    open('x')\n"
    for place in ("a/one.py", "two.py", ".hidden/three.py", "four.txt"):
        (tmp_path / place).write_text(source)
    found = lint_paths([tmp_path])
    assert [Path(f.path).name for f in found] == ["one.py", "two.py"]
    assert lint_paths([tmp_path / "two.py"])[0].rule == "io"
    with pytest.raises(FileNotFoundError, match="missing"):
        lint_paths([tmp_path / "missing"])


def test_the_examples_of_the_documentation_are_clean() -> None:
    here = Path(__file__).parent / "runtime_programs.py"
    assert lint_paths([here]) == []
