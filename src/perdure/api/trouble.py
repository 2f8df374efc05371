"""Trouble that lasts, told without a flood."""

from __future__ import annotations

import logging
import time
from typing import Final

AGAIN_S: Final = 30.0


class Trouble:
    """One kind of trouble: told when it begins, every half minute while it lasts, and at its end.

    Args:
        log: where.
        text: what is the matter; each time with the latest error.
    """

    def __init__(self, log: logging.Logger, text: str) -> None:
        self._log = log
        self._text = text
        self._since_s: float | None = None
        self._told_at_s = 0.0

    def met(self, error: object) -> None:
        """It happened, perhaps again."""
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s = self._told_at_s = now_s
            self._log.warning("%s: %s", self._text, error)
        elif now_s >= self._told_at_s + AGAIN_S:
            self._told_at_s = now_s
            self._log.warning("%s, for %d s now: %s", self._text, now_s - self._since_s, error)

    def over(self) -> None:
        """It did not happen this time."""
        if self._since_s is not None:
            self._log.info("over after %.1f s: %s", time.monotonic() - self._since_s, self._text)
            self._since_s = None
