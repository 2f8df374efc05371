"""Errors as one clear line on stderr, and the exit codes: 0 done, 1 failed, 2 used wrongly."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130

DEBUG_VARIABLE: Final = "PERDURE_DEBUG"


class Misused(Exception):
    """The command line itself is wrong; the message names the argument."""


class Failed(Exception):
    """What was asked for could not be done, or the answer is no."""


def stop(message: str, code: int) -> NoReturn:
    """Print one line and leave."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn every exception of the block into one line and an exit code.

    A defect of perdure's own keeps its traceback if ``PERDURE_DEBUG`` is set.
    """
    try:
        yield
    except Misused as error:
        stop(str(error), MISUSED)
    except Failed as error:
        stop(str(error), FAILED)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        stop(told(error), MISUSED if _is_misnamed(error) else FAILED)


def _is_misnamed(error: Exception) -> bool:
    from perdure.store.contract import StoreMisnamed

    return isinstance(error, StoreMisnamed)


def told(error: Exception) -> str:
    """What an exception says to somebody at a terminal."""
    from perdure.api.errors import RPCError
    from perdure.sdk.errors import PerdureError, UpdateFailedError, WorkflowFailedError
    from perdure.store.contract import StoreError

    if isinstance(error, WorkflowFailedError | UpdateFailedError) and error.cause is not None:
        return f"{error}: {chain_of(error.cause)}"
    if isinstance(error, RPCError | PerdureError | StoreError | ValueError | ImportError):
        return str(error) or type(error).__name__
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return f"{type(error).__name__}: {error} (set {DEBUG_VARIABLE}=1 for the traceback)"


def chain_of(error: BaseException | None) -> str:
    """An error and its causes on one line, the outermost first."""
    parts: list[str] = []
    while error is not None and len(parts) < 10:
        text = str(error) or type(error).__name__
        if not parts or text not in parts[-1]:
            parts.append(text)
        error = error.__cause__
    return ": ".join(parts)
