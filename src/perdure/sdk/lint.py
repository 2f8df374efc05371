"""``perdure lint``: what in workflow code will not replay, found by reading the source.

It looks at functions and classes with ``@workflow``, and at the functions and methods of the same
module that they call. Each finding has a rule:

=====================  ==========================================================================
``io``                 files, sockets, HTTP, databases, processes
``random``             randomness that the runtime cannot replace
``sleep``              blocking the worker
``thread``             threads, processes and executors
``environment``        environment variables, command line, machine
``set-order``          iterating over a set, whose order differs between processes
``global-state``       changing module-level state
``swallowed-cancel``   an `except` that keeps a cancellation from ending the run
=====================  ==========================================================================

A line, or the ``def`` it stands in, is left alone after ``# perdure: ignore`` or
``# perdure: ignore[rule, rule]``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Finding", "RULES", "lint_paths", "lint_source"]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place in workflow code that will not replay.

    Attributes:
        path: the file; `line` and `column` count from 1.
        rule: the rule's id.
        message: what is wrong.
        remedy: what to write instead.
    """

    path: str
    line: int
    column: int
    rule: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.rule}: {self.message}; {self.remedy}"


_ACTIVITY: Final = "do it in an activity and await the activity here"
_SLEEP: Final = "use `await asyncio.sleep(...)`, which is a durable timer in a workflow"

RULES: Final[dict[str, str]] = {
    "io": _ACTIVITY,
    "random": "use `random`, `secrets` or `workflow.random()`, which replay in a workflow",
    "sleep": _SLEEP,
    "thread": _ACTIVITY,
    "environment": "pass it as an argument, or read it in an activity or `workflow.side_effect`",
    "set-order": "iterate over `sorted(...)`, or use a list or a dict",
    "global-state": "keep it in the workflow's own variables, or in `self`",
    "swallowed-cancel": "catch `Exception`, or raise again what was caught",
}
"""Rules and their remedies."""

_CALLS: Final[dict[str, str]] = {
    "open": "io",
    "input": "io",
    "print": "",
    "time.sleep": "sleep",
    "asyncio.to_thread": "thread",
    "concurrent.futures.ThreadPoolExecutor": "thread",
    "concurrent.futures.ProcessPoolExecutor": "thread",
    "os.system": "io",
    "os.popen": "io",
    "os.fork": "thread",
    "os.getenv": "environment",
    "os.getpid": "environment",
    "os.getcwd": "environment",
    "os.uname": "environment",
    "os.cpu_count": "environment",
    "platform.node": "environment",
    "socket.gethostname": "environment",
    "random.SystemRandom": "random",
    "asyncio.open_connection": "io",
    "asyncio.start_server": "io",
    "asyncio.create_subprocess_exec": "thread",
    "asyncio.create_subprocess_shell": "thread",
    "urllib.request.urlopen": "io",
    "os.listdir": "io",
    "os.remove": "io",
    "os.rename": "io",
    "os.mkdir": "io",
    "os.makedirs": "io",
}
"""Calls by full name and their rule; "" is allowed although its module is not."""

_MODULES: Final[dict[str, str]] = {
    "requests": "io",
    "httpx": "io",
    "aiohttp": "io",
    "urllib3": "io",
    "boto3": "io",
    "botocore": "io",
    "sqlite3": "io",
    "psycopg": "io",
    "psycopg2": "io",
    "asyncpg": "io",
    "pymongo": "io",
    "redis": "io",
    "smtplib": "io",
    "ftplib": "io",
    "http.client": "io",
    "socket": "io",
    "shutil": "io",
    "tempfile": "io",
    "glob": "io",
    "subprocess": "thread",
    "threading": "thread",
    "multiprocessing": "thread",
    "concurrent.futures": "thread",
}
"""Modules of which every call is against a rule."""

_METHODS: Final[dict[str, str]] = {
    "run_in_executor": "thread",
    "call_soon_threadsafe": "thread",
    "read_text": "io",
    "write_text": "io",
    "read_bytes": "io",
    "write_bytes": "io",
}
"""Methods that are against a rule, whatever they are called on."""

"""Functions that a helper module may have taken by name before the runtime replaced them."""

_MUTATORS: Final = frozenset(
    {"append", "extend", "insert", "add", "update", "pop", "remove", "clear", "setdefault"}
)

_COMMENT: Final = re.compile(r"#\s*perdure:\s*ignore(?:\[([\w\-, ]*)\])?")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- files --------------------------------------------------------------------------------------


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
    """
    tree = ast.parse(source, filename=path)
    module = _Module(tree)
    ignored = _ignored(source)
    found: set[Finding] = set()
    for function in module.workflow_functions():
        visitor = _Visitor(module, path, function)
        visitor.look()
        skip = ignored.get(function.lineno, frozenset())
        for finding in visitor.findings:
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


# --- one module ---------------------------------------------------------------------------------


class _Module:
    """Names of a module: imports, functions, classes, module-level variables."""

    def __init__(self, tree: ast.Module) -> None:
        self.imports: dict[str, str] = {}
        self.functions: dict[str, _Function] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.variables: set[str] = set()
        for node in ast.walk(tree):
            self._note_import(node)
        for node in tree.body:
            if isinstance(node, _Function):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign):
                self.variables |= {t.id for t in node.targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.variables.add(node.target.id)

    def _note_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for name in node.names:
                bound = name.asname or name.name.split(".")[0]
                self.imports[bound] = name.name if name.asname else bound
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in node.names:
                self.imports[name.asname or name.name] = f"{node.module}.{name.name}"

    def full_name(self, node: ast.expr) -> str:
        """``datetime.datetime.now`` for an expression, with imports followed; "" if unknown."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        parts.append(self.imports.get(node.id, node.id))
        return ".".join(reversed(parts))

    def workflow_functions(self) -> list[_Function]:
        """Functions that run as workflow code: the decorated ones, and those that they call."""
        pending = [f for f in self.functions.values() if self._is_workflow(f)]
        for cls in self.classes.values():
            if self._is_workflow(cls):
                pending += _methods(cls)
        seen: dict[_Function, None] = {}
        while pending:
            function = pending.pop()
            if function not in seen:
                seen[function] = None
                pending += self._called(function)
        return list(seen)

    def _is_workflow(self, node: _Function | ast.ClassDef) -> bool:
        return "workflow" in self._decorators(node)

    def _decorators(self, node: _Function | ast.ClassDef) -> set[str]:
        """Last parts of the decorators' names: `workflow` for ``@perdure.workflow(name=…)``."""
        names = set()
        for decorator in node.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            names.add(self.full_name(target).rsplit(".", 1)[-1])
        return names

    def _called(self, function: _Function) -> Iterator[_Function]:
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            target = node.func
            if isinstance(target, ast.Name) and target.id in self.functions:
                called = self.functions[target.id]
                if "activity" not in self._decorators(called):
                    yield called
            elif isinstance(target, ast.Name) and target.id in self.classes:
                helper = self.classes[target.id]
                if not self._is_workflow(helper):
                    yield from _methods(helper)


def _methods(cls: ast.ClassDef) -> list[_Function]:
    return [node for node in cls.body if isinstance(node, _Function)]


# --- one function -------------------------------------------------------------------------------


class _Visitor(ast.NodeVisitor):
    """Looks at one function's body."""

    def __init__(self, module: _Module, path: str, function: _Function) -> None:
        self._module = module
        self._path = path
        self._function = function
        self._locals = _assigned(function)
        self._sets = _set_names(function)
        self._unsafe = 0
        self.findings: list[Finding] = []

    def look(self) -> None:
        """Fill `findings`."""
        for statement in self._function.body:
            self.visit(statement)

    def _add(self, node: ast.AST, rule: str, message: str, remedy: str = "") -> None:
        if self._unsafe:
            return
        line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
        self.findings.append(
            Finding(self._path, line, column + 1, rule, message, remedy or RULES[rule])
        )

    # --- calls ----------------------------------------------------------------------------------

    def visit_Call(self, node: ast.Call) -> None:
        name = self._module.full_name(node.func)
        rule = self._rule(name, node)
        if rule:
            self._add(node, rule, f"{name or ast.unparse(node.func)}() in workflow code")
        self._check_mutation(node)
        if name == "workflow.side_effect" or name.endswith(".workflow.side_effect"):
            return  # its function runs once, outside of the rules
        self.generic_visit(node)

    def _rule(self, name: str, node: ast.Call) -> str:
        root = name.split(".", 1)[0]
        if root in self._locals:
            name = ""
        if name in _CALLS:
            return _CALLS[name]
        for module, rule in _MODULES.items():
            if name.startswith(f"{module}."):
                return rule
        if name.startswith("os.environ."):
            return "environment"
        if isinstance(node.func, ast.Attribute):
            return _METHODS.get(node.func.attr, "")
        return ""

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._module.full_name(node.value) == "os.environ":
            self._add(node, "environment", "os.environ is read in workflow code")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._module.full_name(node) == "sys.argv":
            self._add(node, "environment", "sys.argv is read in workflow code")
        self.generic_visit(node)

    # --- state ----------------------------------------------------------------------------------

    def _is_global(self, name: str) -> bool:
        return name in self._module.variables and name not in self._locals

    def _check_mutation(self, node: ast.Call) -> None:
        target = node.func
        if (
            isinstance(target, ast.Attribute)
            and target.attr in _MUTATORS
            and isinstance(target.value, ast.Name)
            and self._is_global(target.value.id)
        ):
            self._changed(node, target.value.id)

    def visit_Global(self, node: ast.Global) -> None:
        self._add(node, "global-state", f"`global {', '.join(node.names)}` in workflow code")

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._check_target(target)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._check_target(node.target)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._check_target(target)
        self.generic_visit(node)

    def _check_target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Subscript | ast.Attribute):
            value = target.value
            if isinstance(value, ast.Name) and self._is_global(value.id):
                self._changed(target, value.id)

    def _changed(self, node: ast.AST, name: str) -> None:
        self._add(
            node,
            "global-state",
            f"module-level {name!r} is changed in workflow code, again in every replay",
        )

    # --- sets -----------------------------------------------------------------------------------

    def visit_For(self, node: ast.For) -> None:
        self._check_order(node.iter)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._check_order(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._check_order(node.iter)
        self.generic_visit(node)

    def _check_order(self, iterated: ast.expr) -> None:
        if _is_set(iterated) or (isinstance(iterated, ast.Name) and iterated.id in self._sets):
            self._add(iterated, "set-order", f"iterating over the set {ast.unparse(iterated)!r}")

    # --- exceptions -----------------------------------------------------------------------------

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        caught = "bare `except:`" if node.type is None else self._base_exception(node.type)
        if caught and not _raises(node.body):
            self._add(
                node,
                "swallowed-cancel",
                f"{caught} keeps a cancellation, or continue-as-new, from ending the run",
            )
        self.generic_visit(node)

    def _base_exception(self, type_: ast.expr) -> str:
        kinds = type_.elts if isinstance(type_, ast.Tuple) else [type_]
        if any(self._module.full_name(kind) == "BaseException" for kind in kinds):
            return "`except BaseException`"
        return ""

    # --- blocks that are left alone -------------------------------------------------------------

    def visit_With(self, node: ast.With) -> None:
        calls = [item.context_expr for item in node.items]
        unsafe = any(
            isinstance(call, ast.Call)
            and self._module.full_name(call.func).endswith("workflow.unsafe")
            for call in calls
        )
        self._unsafe += unsafe
        self.generic_visit(node)
        self._unsafe -= unsafe


def _raises(body: Sequence[ast.stmt]) -> bool:
    return any(isinstance(node, ast.Raise) for part in body for node in ast.walk(part))


def _is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("set", "frozenset")
    )


def _assigned(function: _Function) -> set[str]:
    """Names that are local to a function: parameters, and what is assigned in it."""
    arguments = function.args
    names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    names |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
    declared: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Global):
            declared |= set(node.names)
    return names - declared


def _set_names(function: _Function) -> set[str]:
    """Local variables that hold a set at some time."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _is_set(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ast.unparse(node.annotation)
            if re.match(r"(set|frozenset|Set|FrozenSet)\b", text):
                names.add(node.target.id)
    return names
