"""docs/cli.md lists every command with every option of its own, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from perdure.cli.app import app

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cli.md"
EVERYWHERE = {"--db", "--address", "--namespace", "--config", "--json"}


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, f"{name} ")
        else:
            yield prefix + name, found


def documented() -> dict[str, set[str]]:
    """Command → options, from the tables with three columns that begin with a command."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        prefix = "workflow " if section.startswith("perdure workflow") else ""
        for name, cells in re.findall(r"^\| `([a-z]+)[^`]*` \|(.*)\|$", section, re.MULTILINE):
            found[prefix + name] = set(re.findall(r"`(--[a-z-]+)`", cells.rpartition("|")[2]))
    return found


def test_every_command_is_documented_with_its_options() -> None:
    real = {}
    for name, command in commands(typer.main.get_command(app)):
        options = {
            parameter.opts[0]
            for parameter in command.params
            if parameter.param_type_name == "option"
        }
        real[name] = options - EVERYWHERE if name.startswith("workflow ") else options
        if name.startswith("workflow "):
            assert options >= EVERYWHERE, name
    assert documented() == real


def test_every_command_and_option_says_what_it_is_for() -> None:
    for name, command in commands(typer.main.get_command(app)):
        assert command.help, name
        for parameter in command.params:
            assert parameter.param_type_name != "option" or parameter.help, (name, parameter.name)
