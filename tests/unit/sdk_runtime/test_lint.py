"""What ``perdure lint`` finds, and what it leaves alone."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from perdure.sdk.lint import RULES, lint_paths, lint_source
from perdure.sdk.lint.rules import rule_of_call
from perdure.sdk.runtime.guards import FORBIDDEN

ROOT = Path(__file__).resolve().parents[3]

HEAD = """
import asyncio, os, random, sys, threading, subprocess, requests, time
from os import environ
import concurrent.futures
from time import sleep, monotonic
from datetime import datetime
from pathlib import Path
from perdure import activity, workflow
import perdure

CACHE = {}
LIMIT: int = 3
STARTED = datetime.now()
SEED: float = 1 + random.random()
REGION = os.environ.get("REGION", "eu")
LATER = lambda: time.time()

def input(text):
    return text

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
        ("return dict(os.environ)", "environment"),
        ("return 'HOME' in os.environ", "environment"),
        ("return environ['HOME']", "environment"),
        ("return sys.argv[1]", "environment"),
        ("os.system('ls')", "thread"),
        ("os.execv('ls', [])", "thread"),
        ("random.SystemRandom()", "random"),
        ("return STARTED", "import-time"),
        ("return [SEED, x]", "import-time"),
        ("return REGION", "import-time"),
        ("for n in {1, 2}: pass", "set-order"),
        ("for n in set(x): pass", "set-order"),
        ("names = set(x)\nreturn [n for n in names]", "set-order"),
        ("return list(set(x))", "set-order"),
        ("return ', '.join({'a', x})", "set-order"),
        ("for i, n in enumerate(frozenset(x)): pass", "set-order"),
        ("return [*set(x)]", "set-order"),
        ("return {n: 1 for n in set(x)}", "set-order"),
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
        "started = datetime.now()\nreturn started",
        "return sorted({1, 2})",
        "return sorted(n for n in {1, 2})",
        "return sorted(list({1, 2}))",
        "return max(n for n in set(x))",
        "return {n for n in set(x)}",
        "return {*set(x), 3}",
        "return len(set(x))",
        "STARTED = 1\nreturn STARTED",
        "return LATER()",
        "environ = {}\nreturn environ",
        "return input(x)",  # the module's own
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


@pytest.mark.parametrize("value", ["datetime.now()", "time.time()", "os.getenv('X')"])
def test_what_is_taken_at_import_is_no_value_for_a_workflow(value: str) -> None:
    default = f"{HEAD}@workflow\nasync def run(x={value}): return x\n"
    attribute = f"{HEAD}@workflow\nclass Flow:\n    at = {value}\n    def run(self): pass\n"
    for source in (default, attribute, default.replace("(x=", "(*, x=")):
        assert [finding.rule for finding in lint_source(source)] == ["import-time"]
    late = f"{HEAD}@workflow\nasync def run(x=lambda: {value}): return x\n"
    assert lint_source(late) == []
    helper = f"{HEAD}def helper(x={value}): return x\n\n@workflow\nasync def run(): helper()\n"
    assert [finding.rule for finding in lint_source(helper)] == ["import-time"]


def test_every_rule_is_tried() -> None:
    marks = test_what_is_found.pytestmark  # type: ignore[attr-defined]
    assert {rule for _, rule in marks[0].args[1]} == set(RULES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_runtime_forbids_is_against_a_rule() -> None:
    """Audit events that bear the name of a function: a call of it is found without running it."""
    tried = 0
    for event in FORBIDDEN:
        module, _, name = event.rpartition(".")
        try:
            function = getattr(importlib.import_module(module), name, None) if module else open
        except ImportError:
            continue  # not in this version, or not a module
        if callable(function) and not name.startswith("_") and module != "_thread":
            tried += 1
            assert rule_of_call(event), event
    assert tried > 25


@pytest.mark.parametrize("place", ["examples", "docs/tutorial", "tests/simulation"])
def test_programs_that_replay_are_clean(place: str) -> None:
    assert lint_paths([ROOT / place]) == []


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
