"""Runs in one SQLite file, or in memory."""

from perdure.store.sqlite.store import SqliteStore, open_read_only

__all__ = ["SqliteStore", "open_read_only"]
