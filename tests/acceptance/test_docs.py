"""The tutorial is true: its programs are the files beside it, and they print what it shows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from perdure.api import errors as api_errors
from perdure.cli.place import Place, reader
from perdure.engine.limits import DEFAULT
from perdure.sdk import errors as sdk_errors
from perdure.sdk.errors import PerdureError
from perdure.sdk.lint import RULES
from perdure.service.settings import Settings
from perdure.store import contract

DOCS = Path(__file__).resolve().parents[2] / "docs"
TUTORIAL = DOCS / "tutorial"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DOTS = "…"


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(file name or "", language, text) of every code block of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(name, language, text) for name, language, text in found]


def sessions(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, lines of output) of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *lines = part.splitlines()
        yield command, lines


def pattern(lines: list[str]) -> str:
    """A regular expression for output: a line of dots is any lines, dots in a line any text."""
    text = ""
    for line in lines:
        if line == DOTS:
            text += r"(?:.*\n)*?"
        else:
            text += ".*".join(re.escape(part.rstrip()) for part in line.split(DOTS)) + r"[ ]*\n"
    return text


def environment() -> dict[str, str]:
    """The reader's: the perdure command on the path, and output in the order it was made."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def copied(folder: Path) -> Path:
    """The reader's directory with all programs of the tutorial."""
    for file in TUTORIAL.glob("*.py"):
        shutil.copy(file, folder)
    return folder


def check(command: str, lines: list[str], folder: Path) -> None:
    """Run one command and compare what it prints with what the page shows."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    shown = "\n".join(lines)
    assert re.fullmatch(pattern(lines), done.stdout), (
        f"$ {command}\n--- printed:\n{done.stdout}\n--- the page shows:\n{shown}"
    )
    assert done.returncode == 0, done.stdout


async def has_timer(database: Path, run: str) -> bool:
    """Has the run started a timer? Looks beside the process that has the file."""
    try:
        async with reader(Place(str(database), None, "default")) as client:
            history = await client.handle(run).fetch_history()
    except (PerdureError, api_errors.RPCError, contract.StoreError):
        return False  # the file or the run is not there yet
    return any(event.HasField("timer_started_event_attributes") for event in history.events)


def killed_asleep(program: str, run: str, folder: Path) -> list[str]:
    """Run a program, kill it with SIGKILL when its workflow waits for a timer; what it printed."""
    database = folder / Path(program).with_suffix(".db").name
    with subprocess.Popen(
        [sys.executable, program], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            if database.exists() and asyncio.run(has_timer(database, run)):
                process.kill()
                break
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == -9, printed
    return printed.splitlines()


def test_the_blocks_are_the_files() -> None:
    named = {name: text for name, _, text in blocks(DOCS / "tutorial.md") if name}
    files = {file.name: file.read_text(encoding="utf-8") for file in TUTORIAL.glob("*.py")}
    assert named == files
    unnamed = [text for name, kind, text in blocks(DOCS / "tutorial.md") if kind == "python"]
    assert len(unnamed) == len(files), "every program of the tutorial is a file"


@pytest.mark.timeout(600)
def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    tutorial = blocks(DOCS / "tutorial.md")
    killed, resumed = (text for _, kind, text in tutorial if kind == "console by-hand")

    ((_, before),) = sessions(killed)
    assert killed_asleep("orders.py", "order-42", folder) == before[:-1]
    for command, lines in sessions(resumed):
        check(command, lines, folder)

    tried = 0
    for _, kind, text in tutorial:
        if kind == "console":
            for command, lines in sessions(text):
                check(command, lines, folder)
                tried += 1
    assert tried >= 14


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_pages_compiles(page: Path) -> None:
    for name, kind, text in blocks(page):
        if kind == "python":
            compile(text, name or page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
        path, anchor = target
        other = page if not path else page.parent / path
        assert other.exists(), f"{page.name}: {path} does not exist"
        if anchor:
            assert anchor[1:] in anchors(other), f"{page.name}: no heading {anchor} in {other.name}"


def anchors(page: Path) -> set[str]:
    """What headings of a page are linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exceptions_of(*modules: ModuleType) -> set[str]:
    """Names of the exceptions that modules define."""
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, BaseException)
        and value.__module__ == module.__name__
    }


def test_every_error_is_in_a_tree_and_every_error_of_a_tree_is_there() -> None:
    trees = [text for _, _, text in blocks(DOCS / "errors.md") if "──" in text]
    drawn = set(re.findall(r"^(?:[│ ]*[├└]── )?([A-Z]\w+)", "".join(trees), re.MULTILINE))
    assert drawn == exceptions_of(sdk_errors, api_errors, contract) | {"BaseException"}


def test_every_rule_of_the_linter_is_explained() -> None:
    text = (DOCS / "determinism.md").read_text(encoding="utf-8")
    assert {rule for rule in RULES if f"| `{rule}` |" in text} == set(RULES)


def test_the_limits_are_the_defaults() -> None:
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    limits = DEFAULT
    rows = [
        f"| {limits.id_bytes_max:,} bytes |",
        f"| {limits.payload_bytes_max >> 20} MiB; "
        f"logged from {Settings().payload_bytes_warn >> 10} KiB on |",
        f"| more than {limits.history_suggest_events:,} events or "
        f"{limits.history_suggest_bytes >> 20} MiB |",
        f"| more than {limits.history_events_max:,} events or "
        f"{limits.history_bytes_max >> 20} MiB |",
        f"each | {limits.pending_activities_max:,} |",
        f"| {limits.signals_max:,} |",
        f"| {limits.updates_max:,}; {limits.updates_in_flight_max} at a time |",
    ]
    assert [row for row in rows if row not in text] == []
