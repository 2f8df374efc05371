"""What the clients were told, written down at once: the checker compares it with the database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "diary.jsonl"


class Diary:
    """A file of JSON lines, one per acknowledgement.

    Kinds of lines: "start", "signal", "update" and "result" are what was acknowledged; "wrong" is
    what a client itself saw to be wrong; "again" counts requests that were sent once more.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / FILE).open("a", encoding="utf-8")

    def note(self, kind: str, workflow_id: str, **facts: Any) -> None:
        """Append a line; it is with the operating system when this returns."""
        line = {"kind": kind, "workflow_id": workflow_id, **facts}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines, in order."""
    path = folder / FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
