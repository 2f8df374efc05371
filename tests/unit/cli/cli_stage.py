"""A program for the command to work on, and a way to call the command in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from perdure.cli import main
from perdure.sdk.registry import ACTIVITIES, WORKFLOWS

PROGRAM = """
import asyncio
from perdure import ApplicationError, activity, workflow

@activity
async def double(n: int) -> int:
    return 2 * n

@workflow
async def doubled(n: int) -> int:
    if n < 0:
        raise ApplicationError("n: must not be negative", non_retryable=True)
    return await double(n)

@workflow
async def twice(is_first: bool) -> str:
    if is_first:
        workflow.continue_as_new(False)
    await asyncio.sleep(3)
    return "the end"

@workflow
class Counter:
    def __init__(self) -> None:
        self.total = 0
        self.closed = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.closed)
        return self.total

    @workflow.signal
    def add(self, n: int) -> None:
        self.total += n

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def now(self) -> int:
        return self.total

    @workflow.update
    async def set(self, n: int) -> int:
        before, self.total = self.total, n
        return before

    @set.validator
    def check_set(self, n: int) -> None:
        if n < 0:
            raise ValueError("n: must not be negative")

only_double = [double]
"""


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its whole output, which must be one JSON value."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """Its one line of error, after a failure."""
        assert self.code != 0, self.out
        (line,) = self.err.strip().splitlines()[-1:]
        assert "Traceback" not in self.err, self.err
        assert line.startswith("error: "), self.err
        return line.removeprefix("error: ")


class Stage:
    """A folder with a program and a database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PERDURE_")}
        self.environment["PERDURE_DB"] = "runs.db"

    @property
    def is_shared(self) -> bool:
        """Can others work on the database while a command does?"""
        return self.environment["PERDURE_DB"].startswith("postgresql://")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command as a process of its own and leave it running."""
        return subprocess.Popen(
            [sys.executable, "-m", "perdure.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Done:
        """Run the command to its end, in this process: starting one takes a second."""
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch.object(sys, "argv", ["perdure", *arguments]),
            mock.patch.object(sys, "path", list(sys.path)),
            mock.patch.object(ACTIVITIES, "_made", {}),  # as in a process of its own
            mock.patch.object(WORKFLOWS, "_made", {}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
            finally:
                sys.modules.pop("program", None)
        return Done(code or 0, out.getvalue(), err.getvalue())

    def workflow(self, *arguments: str) -> Done:
        """Run ``perdure workflow …``."""
        return self.run("workflow", *arguments)
