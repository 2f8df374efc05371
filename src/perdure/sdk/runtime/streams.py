"""Randomness that replays: one stream for each purpose, so that a new call shifts no other.

A stream is named by the function that draws from it, or by the user. Its seed is made of the run's
seed and that name.
"""

from __future__ import annotations

import os
import random
import sys
import uuid
from typing import Final

MAXIMUM_STREAMS: Final = 1024
"""Streams of one run: a program that makes up names without end gets an error."""


class Streams:
    """The random streams of one run."""

    __slots__ = ("_by_name", "seed")

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self._by_name: dict[str, random.Random] = {}

    def reseed(self, seed: str) -> None:
        """Start over, as after a reset: what follows must not repeat what the other run drew."""
        self.seed = seed
        self._by_name.clear()

    def get(self, name: str) -> random.Random:
        """The stream of that name."""
        stream = self._by_name.get(name)
        if stream is None:
            if len(self._by_name) >= MAXIMUM_STREAMS:
                raise ValueError(f"more than {MAXIMUM_STREAMS} random streams in one workflow run")
            stream = self._by_name[name] = random.Random(f"{self.seed}/{name}")
        return stream

    def uuid4(self, name: str) -> uuid.UUID:
        """A random UUID from the stream of that name."""
        return uuid.UUID(int=self.get(name).getrandbits(128), version=4)


_PASSED_OVER: Final = frozenset(
    {
        "random",
        "uuid",
        "secrets",
        "tempfile",
        "os",
        __name__,
        "perdure.sdk.runtime.dice",
        "perdure.sdk.workflow.facts",
    }
)


def caller() -> str:
    """File and qualified name of the nearest function that is not a library of randomness.

    The file's name, not the module's, because the same code may be ``__main__`` in one process and
    imported in another.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _PASSED_OVER:
        frame = frame.f_back
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{code.co_qualname}"
