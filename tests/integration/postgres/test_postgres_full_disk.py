"""The database server's disk is full: that of the tables, and that of its log."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pg_stage import Traffic, server_of_its_own, until

import postgres


@contextmanager
def small_disk(size_mib: int) -> Iterator[Path]:
    """A file system of that size, for the servers' user. Skips the test where none can be made."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    directory = Path(tempfile.mkdtemp(prefix="perdure-disk-"))
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", directory]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr}")
        try:
            shutil.chown(directory, postgres._other_user())
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)
    finally:
        directory.rmdir()


def fill(directory: Path) -> Path:
    """Take all of a disk's room with a file, though the database takes some of it meanwhile."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return ballast


async def test_the_disk_of_the_tables_is_full() -> None:
    with small_disk(64) as disk, server_of_its_own() as server:
        await server.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        await server.execute("CREATE DATABASE small TABLESPACE small")
        async with Traffic.on(server.dsn("small")) as traffic:
            ballast = fill(disk)
            error = await traffic.trouble()
            assert "disk is full" in error.message
            assert "No space left" in error.message
            ballast.unlink()
            await traffic.more()


async def test_the_disk_of_the_log_is_full() -> None:
    """PostgreSQL panics, and cannot start again before there is room."""
    settings = {"max_wal_size": "1GB", "min_wal_size": "2MB", "checkpoint_timeout": "1h"}
    with (
        small_disk(48) as disk,
        server_of_its_own(settings, ("--wal-segsize=1", "-X", str(disk / "wal"))) as server,
    ):
        await server.execute("CREATE DATABASE small")
        async with Traffic.on(server.dsn("small")) as traffic:
            ballast = fill(disk)
            await traffic.trouble()
            await until(lambda: "PANIC" in server.log(), traffic.died)
            assert "No space left on device" in server.log()
            refused = len(traffic.refused)
            await until(lambda: len(traffic.refused) > refused + 5, traffic.died)
            ballast.unlink()
            if not server.is_running:  # it gave up: somebody starts it again
                server.stop()
                server.start()
            await traffic.more()
