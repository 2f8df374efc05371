"""Would this code still replay those histories?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temporalio.api.history.v1 import History

from perdure.sdk.converter import Converter
from perdure.sdk.interceptors import Interceptor
from perdure.sdk.records import WorkflowHistory
from perdure.sdk.runtime.replayer import replay

__all__ = ["ReplayResult", "Replayer"]

Recorded = WorkflowHistory | History | str | bytes | Mapping[str, Any]


@dataclass(frozen=True)
class ReplayResult:
    """How one history fared: `error` is None when the code does what the history holds."""

    name: str
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether the history replays."""
        return self.error is None

    def __str__(self) -> str:
        return f"{self.name}: {'replays' if self.ok else self.error}"


class Replayer:
    """Replays recorded histories with today's code.

    Args:
        workflows: the decorated functions and classes.
        converter, interceptors: as the worker has them.

    Example:
        >>> Replayer([checkout]).replay(Path("history.json").read_text())
    """

    def __init__(
        self,
        workflows: Iterable[Any],
        *,
        converter: Converter | None = None,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self._workflows = list(workflows)
        self._converter = converter
        self._interceptors = interceptors

    def replay(self, history: Recorded) -> None:
        """Replay one history: fetched, as messages, or the JSON that Temporal's tools export.

        Raises:
            NonDeterminismError: the code does something else; the message shows both.
            UnknownTypeError: no such workflow is among those given.
            ValueError: this is no history.
        """
        if isinstance(history, WorkflowHistory):
            history = History(events=history.events)
        replay(
            history,
            self._workflows,
            converter=self._converter,
            interceptors=self._interceptors,  # type: ignore[arg-type]
        )

    def replay_all(self, histories: Mapping[str, Recorded]) -> list[ReplayResult]:
        """Replay many, by name; none keeps the others from being tried."""
        return [self._try(name, history) for name, history in histories.items()]

    def _try(self, name: str, history: Recorded) -> ReplayResult:
        try:
            self.replay(history)
        except Exception as error:
            return ReplayResult(name, error)
        return ReplayResult(name)
