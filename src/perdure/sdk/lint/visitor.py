"""How the linter looks at one function."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from perdure.sdk.lint.findings import Finding
from perdure.sdk.lint.module import Function, Module
from perdure.sdk.lint.rules import (
    ENVIRONMENT,
    FORGET_ORDER,
    KEEP_ORDER,
    METHODS,
    MUTATORS,
    RULES,
    rule_of_call,
)


def look_at(function: Function, module: Module, path: str) -> list[Finding]:
    """What is against a rule in one function of workflow code."""
    visitor = _Visitor(module, path, function)
    visitor.look()
    return visitor.findings


class _Visitor(ast.NodeVisitor):
    def __init__(self, module: Module, path: str, function: Function) -> None:
        self._module = module
        self._path = path
        self._function = function
        self._locals = _assigned(function)
        self._sets = _set_names(function)
        self._unsafe = 0
        self._ordered_later: set[ast.AST] = set()
        self.findings: list[Finding] = []

    def look(self) -> None:
        """Fill `findings`."""
        arguments = self._function.args
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._check_import_time(default, "a default argument")
        owner = self._module.owner.get(self._function)
        for node in owner.body if owner is not None else ():
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                self._check_import_time(node.value, "a class attribute")
        for statement in self._function.body:
            self.visit(statement)

    def _add(self, node: ast.AST, rule: str, message: str) -> None:
        if self._unsafe:
            return
        line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
        self.findings.append(Finding(self._path, line, column + 1, rule, message, RULES[rule]))

    def _full_name(self, node: ast.expr) -> str:
        """As the module knows it; "" for what hangs on a local variable."""
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in self._locals:
            return ""
        return self._module.full_name(node)

    # --- calls ----------------------------------------------------------------------------------

    def visit_Call(self, node: ast.Call) -> None:
        name = self._full_name(node.func)
        rule = rule_of_call(name)
        if not rule and isinstance(node.func, ast.Attribute):
            rule = METHODS.get(node.func.attr, "")
        if rule:
            self._add(node, rule, f"{name or ast.unparse(node.func)}() in workflow code")
        self._check_mutation(node)
        if name == "workflow.side_effect" or name.endswith(".workflow.side_effect"):
            return  # its function runs once, outside of the rules
        self._check_ordering_call(node, name)
        self.generic_visit(node)

    # --- what differs from process to process ---------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._check_environment(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._check_environment(node)
        source = self._module.momentary.get(node.id)
        if source and isinstance(node.ctx, ast.Load) and node.id not in self._locals:
            message = f"module-level {node.id!r} holds what {source} gave when the module was"
            self._add(node, "import-time", f"{message} imported, which differs in each process")

    def _check_environment(self, node: ast.Attribute | ast.Name) -> None:
        name = self._full_name(node)
        if name in ENVIRONMENT:
            self._add(node, "environment", f"{name} is read in workflow code")

    def _check_import_time(self, value: ast.expr, what: str) -> None:
        source = self._module.moment_in(value)
        if source:
            message = f"{what} holds what {source} gave when the module was imported"
            self._add(value, "import-time", f"{message}, which differs in each process")

    # --- state ----------------------------------------------------------------------------------

    def _is_global(self, name: str) -> bool:
        return name in self._module.variables and name not in self._locals

    def _check_mutation(self, node: ast.Call) -> None:
        target = node.func
        if (
            isinstance(target, ast.Attribute)
            and target.attr in MUTATORS
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

    def visit_Starred(self, node: ast.Starred) -> None:
        self._check_order(node.value)
        self.generic_visit(node)

    def visit_Set(self, node: ast.Set) -> None:
        for element in node.elts:  # a set made of sets has no order to lose
            self.visit(element.value if isinstance(element, ast.Starred) else element)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._check_generators(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._check_generators(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._check_generators(node)

    def _check_generators(self, node: ast.ListComp | ast.DictComp | ast.GeneratorExp) -> None:
        if node not in self._ordered_later:
            for generator in node.generators:
                self._check_order(generator.iter)
        self.generic_visit(node)

    def _check_ordering_call(self, node: ast.Call, name: str) -> None:
        if name in FORGET_ORDER:
            self._ordered_later.update(node.args)
        elif name in KEEP_ORDER or (
            isinstance(node.func, ast.Attribute) and node.func.attr == "join"
        ):
            for argument in node.args:
                if node not in self._ordered_later:
                    self._check_order(argument)

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
        if any(self._full_name(kind) == "BaseException" for kind in kinds):
            return "`except BaseException`"
        return ""

    # --- blocks that are left alone -------------------------------------------------------------

    def visit_With(self, node: ast.With) -> None:
        calls = [item.context_expr for item in node.items]
        unsafe = any(
            isinstance(call, ast.Call) and self._full_name(call.func).endswith("workflow.unsafe")
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


def _assigned(function: Function) -> set[str]:
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


def _set_names(function: Function) -> set[str]:
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
