"""Who has the database file: a lock file beside it, held for as long as the store is open."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import weakref
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from perdure.store.contract import StoreHeld, StoreUnavailable

_ATTEMPTS = 10  # a lock file may vanish between opening and locking it


class Holder(msgspec.Struct):
    """What the lock file says about the process that has the database."""

    pid: int
    host: str
    since: str
    command: str


class Hold:
    """An exclusive claim on a database file; the kernel drops it when the process dies.

    Raises:
        StoreHeld: another store (of another process, or of this one) has the file.
        StoreUnavailable: the directory cannot be written.
    """

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".lock")
        self._fd = self._take(database)
        _HOLDS.add(self)

    def _take(self, database: Path) -> int:
        for _ in range(_ATTEMPTS):
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise StoreUnavailable(_unwritable(database, error)) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(fd, self.path):
                    _describe(fd)
                    return fd
                os.close(fd)  # its former holder removed it just now
            except BlockingIOError:
                holder = _read(fd)
                os.close(fd)
                raise StoreHeld(_held(database, holder)) from None
            except OSError as error:
                os.close(fd)
                raise StoreUnavailable(_unwritable(database, error)) from error
        raise StoreUnavailable(f"cannot lock {self.path}: it keeps being replaced")

    def forget(self) -> None:
        """In a forked child: drop the copy, or the claim would outlive the parent in the child."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def release(self) -> None:
        """Let go. The file is removed while still locked, so that nobody locks a removed file."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


_HOLDS: weakref.WeakSet[Hold] = weakref.WeakSet()


def _forget_all() -> None:
    for hold in list(_HOLDS):
        hold.forget()


os.register_at_fork(after_in_child=_forget_all)


def _describe(fd: int) -> None:
    holder = Holder(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(sys.orig_argv)[:500],
    )
    os.ftruncate(fd, 0)
    os.pwrite(fd, msgspec.json.encode(holder), 0)


def _read(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(fd, 4096, 0), type=Holder)
    except msgspec.DecodeError:
        return None


def _same_file(fd: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


def _held(database: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"{database} is in use by another process"
    who = "this same process" if holder.pid == os.getpid() else f"process {holder.pid}"
    return (
        f"{database} is in use by {who} on {holder.host} since {holder.since}: {holder.command}. "
        "One process at a time can open an embedded database: stop that one, or give this one "
        "a database of its own."
    )


def _unwritable(database: Path, error: OSError) -> str:
    return f"cannot write in {database.parent}: {error.strerror}"
