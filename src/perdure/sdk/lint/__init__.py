"""``perdure lint``: what in workflow code will not replay, found by reading the source.

It looks at functions and classes with ``@workflow``, and at the functions and methods of the same
module that they call. `RULES` are the rules; docs/determinism.md says what each of them finds.

A line, or the ``def`` it stands in, is left alone after ``# perdure: ignore`` or
``# perdure: ignore[rule, rule]``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from perdure.sdk.lint.findings import Finding
from perdure.sdk.lint.module import Module
from perdure.sdk.lint.rules import RULES
from perdure.sdk.lint.visitor import look_at

__all__ = ["Finding", "RULES", "lint_paths", "lint_source"]

_COMMENT: Final = re.compile(r"#\s*perdure:\s*ignore(?:\[([\w\-, ]*)\])?")


def lint_paths(paths: Iterable[str | Path]) -> list[Finding]:
    """Look at files, and at all ``*.py`` files in directories.

    Raises:
        FileNotFoundError: a path does not exist.
        SyntaxError: a file is no Python.
    """
    findings: list[Finding] = []
    for path in paths:
        for file in _files(Path(path)):
            findings += lint_source(file.read_text(encoding="utf-8"), str(file))
    return findings


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*.py")):
        relative = file.relative_to(path).parts
        if not any(part.startswith(".") or part == "__pycache__" for part in relative):
            yield file


def lint_source(source: str, path: str = "<source>") -> list[Finding]:
    """Look at the source of one module.

    Raises:
        SyntaxError: it is no Python.

    Example:
        >>> lint_source("@workflow\\nasync def run(): open('x')")[0].rule
        'io'
    """
    module = Module(ast.parse(source, filename=path))
    ignored = _ignored(source)
    found: set[Finding] = set()
    for function in module.workflow_functions():
        skip = ignored.get(function.lineno, frozenset())
        for finding in look_at(function, module, path):
            rules = ignored.get(finding.line, frozenset()) | skip
            if "*" not in rules and finding.rule not in rules:
                found.add(finding)
    return sorted(found)


def _ignored(source: str) -> dict[int, frozenset[str]]:
    """Rules that comments turn off, by line; "*" for all."""
    lines: dict[int, frozenset[str]] = {}
    for number, line in enumerate(source.splitlines(), start=1):
        match = _COMMENT.search(line)
        if match:
            names = match.group(1)
            rules = {"*"} if names is None else {name.strip() for name in names.split(",")}
            lines[number] = frozenset(rules)
    return lines
