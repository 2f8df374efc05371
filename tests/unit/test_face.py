"""The public face: complete, light to import, and at peace with Temporal's own package."""

from __future__ import annotations

import ast
import builtins
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure import testing

STUB = Path(perdure.__file__).with_suffix(".pyi")


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def promised() -> list[str]:
    names: list[str] = []
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names]
    return names


def test_every_promised_name_is_there() -> None:
    assert len(promised()) > 60
    assert set(promised()) <= set(dir(perdure))
    for name in promised():
        assert getattr(perdure, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="conect"):
        _ = perdure.conect  # type: ignore[attr-defined]


def test_a_star_import_shadows_no_builtin() -> None:
    assert not set(perdure.__all__) & set(vars(builtins))
    assert perdure.TimeoutError is not TimeoutError
    assert run("from perdure import *; print(TimeoutError.__module__, connect.__name__)") == (
        "builtins connect"
    )


def test_importing_it_loads_next_to_nothing() -> None:
    code = (
        "import sys, perdure; "
        "heavy = ('temporalio.api', 'msgspec', 'sqlite3', 'perdure.sdk', 'perdure.service'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_using_it_loads_the_messages_and_not_temporals_sdk() -> None:
    code = (
        "import sys; from perdure import activity, connect, workflow; "
        "print('temporalio.api' in sys.modules, 'temporalio.bridge' in sys.modules)"
    )
    assert run(code) == "True False"


@pytest.mark.parametrize(
    "order", ["import perdure.sdk.client, temporalio", "import temporalio, perdure.sdk.client"]
)
def test_temporals_own_package_is_whole_when_it_is_asked(order: str) -> None:
    code = (
        f"{order}; import temporalio.client; "
        "print(temporalio.__version__[0].isdigit(), temporalio.service.__name__, "
        "temporalio.client.Client.__name__)"
    )
    assert run(code) == "True temporalio.service Client"


def test_the_command_says_what_it_can_do_without_loading_the_service() -> None:
    code = (
        "import sys\nsys.argv = ['perdure', '--help']\nfrom perdure.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('perdure.service' in sys.modules, 'temporalio.api.workflowservice' in sys.modules)"
    )
    assert run(code).splitlines()[-1] == "False False"


def undocumented(owner: object, name: str) -> list[str]:
    """What is public there and has no docstring."""
    found = [] if inspect.getdoc(owner) else [name]
    if inspect.isclass(owner) or name in ("workflow", "activity"):
        for key in dir(owner):
            value = inspect.getattr_static(owner, key)
            function = value.fget if isinstance(value, property) else getattr(owner, key, None)
            ours = str(getattr(function, "__module__", "")).startswith("perdure")
            if not key.startswith("_") and callable(function) and ours:
                found += [] if inspect.getdoc(function) else [f"{name}.{key}"]
    return found


def test_all_that_is_public_says_what_it_does() -> None:
    places = [(perdure, name) for name in promised()]
    places += [(testing, name) for name in testing.__all__]
    assert [gap for place, name in places for gap in undocumented(getattr(place, name), name)] == []
    assert undocumented(type("Bare", (), {"__module__": "perdure.x"}), "Bare") == ["Bare"]
