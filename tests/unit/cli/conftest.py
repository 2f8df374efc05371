from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_stage import Stage


@pytest.fixture(params=["sqlite", "postgres"])
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, new_database: Callable[[str], str]
) -> Stage:
    """On a file, and on a database that others share."""
    made = Stage(tmp_path)
    if request.param == "postgres":
        made.environment["PERDURE_DB"] = new_database("postgres")
    return made


@pytest.fixture
def file_stage(tmp_path: Path) -> Stage:
    """On a file: for what is about files, or needs no database at all."""
    return Stage(tmp_path)
