"""What the linter knows of a module: its names, and which functions run as workflow code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from perdure.sdk.lint.rules import ENVIRONMENT, is_momentary

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """Names of a module: imports, functions, classes, module-level variables.

    Attributes:
        variables: names that are assigned at module level.
        momentary: those of them whose value differs from process to process, and where from.
        owner: the workflow class that a method belongs to.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.imports: dict[str, str] = {}
        self.functions: dict[str, Function] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.variables: set[str] = set()
        self.momentary: dict[str, str] = {}
        self.owner: dict[Function, ast.ClassDef] = {}
        for node in ast.walk(tree):
            self._note_import(node)
        for node in tree.body:
            if isinstance(node, Function):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                self._note_variables(node)

    def _note_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for name in node.names:
                bound = name.asname or name.name.split(".")[0]
                self.imports[bound] = name.name if name.asname else bound
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in node.names:
                self.imports[name.asname or name.name] = f"{node.module}.{name.name}"

    def _note_variables(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        self.variables.update(names)
        source = node.value and self.moment_in(node.value)
        if source:
            self.momentary.update(dict.fromkeys(names, source))

    def full_name(self, node: ast.expr) -> str:
        """``datetime.datetime.now`` for an expression, with imports followed.

        It is "" if unknown, and for what the module defines itself under a builtin's name.
        """
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        name = node.id
        if name not in self.imports and (
            name in self.functions or name in self.classes or name in self.variables
        ):
            return ""
        parts.append(self.imports.get(name, name))
        return ".".join(reversed(parts))

    def moment_in(self, expression: ast.expr) -> str:
        """What in an expression, when it is evaluated, differs from process to process; or ""."""
        pending: list[ast.AST] = [expression]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.Lambda):
                continue  # evaluated later
            if isinstance(node, ast.Call):
                name = self.full_name(node.func)
                if is_momentary(name):
                    return f"{name}()"
            elif isinstance(node, ast.Attribute | ast.Name):
                name = self.full_name(node)
                if name in ENVIRONMENT:
                    return name
            pending += ast.iter_child_nodes(node)
        return ""

    def workflow_functions(self) -> list[Function]:
        """Functions that run as workflow code: the decorated ones, and those that they call."""
        pending = [f for f in self.functions.values() if self._is_workflow(f)]
        for cls in self.classes.values():
            if self._is_workflow(cls):
                found = _methods(cls)
                self.owner.update(dict.fromkeys(found, cls))
                pending += found
        seen: dict[Function, None] = {}
        while pending:
            function = pending.pop()
            if function not in seen:
                seen[function] = None
                pending += self._called(function)
        return list(seen)

    def _is_workflow(self, node: Function | ast.ClassDef) -> bool:
        return "workflow" in self._decorators(node)

    def _decorators(self, node: Function | ast.ClassDef) -> set[str]:
        """Last parts of the decorators' names: `workflow` for ``@perdure.workflow(name=…)``."""
        names = set()
        for decorator in node.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            names.add(self.full_name(target).rsplit(".", 1)[-1])
        return names

    def _called(self, function: Function) -> Iterator[Function]:
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


def _methods(cls: ast.ClassDef) -> list[Function]:
    return [node for node in cls.body if isinstance(node, Function)]
