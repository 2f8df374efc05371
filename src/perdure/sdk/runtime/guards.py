"""What keeps workflow code deterministic: its own time and randomness, and no I/O.

Importing this module puts thin dispatchers in the place of functions of `time`, `random`, `uuid`,
`secrets` and `os.urandom`, and of `datetime.now` and `datetime.utcnow`. In workflow code they give
values that replay; everywhere else, and in ``with workflow.unsafe()``, they call the original.

I/O, threads, processes and sockets are found by an audit hook, which `arm` installs once and which
looks only at workflow code. Importing modules there is allowed, and so is what importing does.

What this does not see: C extensions that read the clock or do I/O by themselves, dictionaries
ordered by `id`, iteration over sets of strings (`PYTHONHASHSEED`), the environment, and files read
while modules are imported. ``perdure lint`` points at those that can be seen in the source.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from perdure.sdk.errors import NonDeterminismError
from perdure.sdk.runtime import clocks, dice, ordered
from perdure.sdk.runtime.context import remembered, state

_PLACES: Final = {
    "open": "open()",
    "time.sleep": "time.sleep()",
    "_thread.start_new_thread": "starting a thread",
    "_thread.start_joinable_thread": "starting a thread",
    "sqlite3.connect": "sqlite3.connect()",
    "socket.__new__": "opening a socket",
    "os.system": "os.system()",
    "os.fork": "os.fork()",
}
"""Audit events with a better name for people than their own."""

FORBIDDEN: Final = frozenset(
    {
        *_PLACES,
        "fcntl.fcntl",
        "fcntl.flock",
        "fcntl.lockf",
        "ftplib.connect",
        "glob.glob",
        "http.client.connect",
        "http.client.send",
        "imaplib.open",
        "mmap.__new__",
        "os.chdir",
        "os.chmod",
        "os.chown",
        "os.exec",
        "os.forkpty",
        "os.kill",
        "os.link",
        "os.listdir",
        "os.mkdir",
        "os.posix_spawn",
        "os.putenv",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.scandir",
        "os.spawn",
        "os.startfile",
        "os.symlink",
        "os.truncate",
        "os.unsetenv",
        "os.utime",
        "os.walk",
        "poplib.connect",
        "pty.spawn",
        "shutil.copyfile",
        "shutil.move",
        "shutil.rmtree",
        "signal.pthread_kill",
        "smtplib.connect",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostname",
        "socket.sendmsg",
        "socket.sendto",
        "subprocess.Popen",
        "telnetlib.Telnet.open",
        "tempfile.mkdtemp",
        "tempfile.mkstemp",
        "urllib.Request",
        "webbrowser.open",
    }
)
"""Audit events that workflow code must not cause."""

_EXCUSED: Final = ("<frozen importlib", "<frozen zipimport")
_EXCUSED_MODULES: Final = frozenset(
    {"linecache", "tokenize", "traceback", "logging", "zoneinfo._common", "importlib.resources"}
)
"""Who may read files on behalf of workflow code: imports, tracebacks, log handlers, time zones."""


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event in FORBIDDEN and state.guarded is not None:
        _forbid(event, args)


def _forbid(event: str, args: tuple[Any, ...]) -> None:
    frame: FrameType | None = sys._getframe(2)
    user: FrameType | None = None
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_filename.startswith(_EXCUSED) or name in _EXCUSED_MODULES:
            return
        if name == "perdure.sdk.runtime.run":
            break
        if user is None and not _is_library(frame):
            user = frame
        frame = frame.f_back
    what = _PLACES.get(event, f"{event}()")
    subject = f" ({args[0]!r})" if event == "open" and args else ""
    place = f" at {user.f_code.co_filename}:{user.f_lineno}" if user is not None else ""
    raise remembered(NonDeterminismError(
        f"{what}{subject} in workflow code{place}: it would happen again in every replay, perhaps "
        "with another outcome. Put it in an activity and await the activity here; what has no part "
        "in the workflow's decisions may stand in `with workflow.unsafe():`"
    ))  # fmt: skip


def _is_library(frame: FrameType) -> bool:
    filename = frame.f_code.co_filename
    return filename.startswith(("<frozen", _STDLIB))


_real_thread_start = threading.Thread.start


@functools.wraps(_real_thread_start)
def _start_thread(self: threading.Thread) -> None:
    # Not every Python version raises an audit event here.
    if state.guarded is not None:
        _forbid("_thread.start_new_thread", ())
    _real_thread_start(self)


threading.Thread.start = _start_thread  # type: ignore[method-assign]

_STDLIB: Final = asyncio.__file__.rsplit("asyncio", 1)[0]
_armed = False


def arm() -> None:
    """Install the audit hook, once per process: hooks cannot be removed."""
    global _armed
    if not _armed:
        _armed = True
        sys.addaudithook(_hook)


def adopt(function: Callable[..., Any]) -> None:
    """Mend the names that a workflow's module imported before this module was.

    ``from time import time`` binds the original function; the module's name is bound to the
    dispatcher instead, which does the same outside of workflow code.
    """
    names = getattr(function, "__globals__", None)
    if names is None:
        return
    for name, value in list(names.items()):
        if callable(value):
            try:
                dispatcher = REPLACED.get(value)
            except TypeError:  # not hashable
                continue
            if dispatcher is not None:
                names[name] = dispatcher


REPLACED: Final[dict[Any, Callable[..., Any]]] = {
    **clocks.install(),
    **dice.install(),
    **ordered.install(),
}
"""Original functions and their dispatchers."""
