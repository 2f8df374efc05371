"""What is SQLite's own: files, locks, versions, full disks, sudden death."""
# ruff: noqa: ASYNC221, ASYNC240 -- a test may wait

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from store_rows import record, start, step, task

from perdure.store.contract import (
    DEFAULT_RANK,
    LEVEL_BITS,
    START,
    StoreError,
    StoreHeld,
    StoreTooNew,
    StoreUnavailable,
    Write,
)
from perdure.store.query import Column, Compare, Order, Query, StartsWith
from perdure.store.sqlite import SqliteStore, open_read_only, render, schema
from perdure.store.sqlite import store as store_module

HERE = Path(__file__).parent


@contextlib.asynccontextmanager
async def opened(path: Path, **options: bool):  # type: ignore[no-untyped-def]
    store = SqliteStore(path, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


# ---- opening ----


async def test_nothing_but_the_database_remains(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db"):
        assert (tmp_path / "a.db.lock").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


async def test_a_second_opening_names_the_holder(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db"):
        with pytest.raises(StoreHeld, match=r"a\.db is in use by this same process"):
            await SqliteStore(tmp_path / "a.db").open()
        assert (tmp_path / "a.db.lock").exists(), "a failed opening must not remove the lock"
        with pytest.raises(StoreHeld):
            await SqliteStore(tmp_path / "a.db").open()


async def test_another_process_is_told_pid_and_command(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from perdure.store.sqlite import SqliteStore\n"
        "try: asyncio.run(SqliteStore(sys.argv[1]).open())\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    async with opened(tmp_path / "a.db"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "a.db")], capture_output=True, text=True
        )
    assert done.stdout.startswith("StoreHeld"), done
    assert f"process {os.getpid()}" in done.stdout
    assert "pytest" in done.stdout


async def test_a_lock_file_left_by_the_dead_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.db.lock").write_text(json.dumps({"pid": 1, "host": "h"}))
    async with opened(tmp_path / "a.db"):
        pass


async def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    runs, goes_on = context.Event(), context.Event()

    def live() -> None:
        runs.set()
        goes_on.wait()

    store = SqliteStore(tmp_path / "a.db")
    await store.open()
    child = context.Process(target=live, daemon=True)
    child.start()
    assert runs.wait(30)
    try:
        assert store._hold is not None
        os.close(store._hold._fd)  # as the kernel does when this process is killed
        store._hold._fd = -1
        async with opened(tmp_path / "a.db"):
            pass
    finally:
        goes_on.set()
        child.join()
        await store.close()


async def test_a_newer_schema_names_both_versions(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db"):
        pass
    known = len(schema.migrations())
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute(f"PRAGMA user_version = {known + 3}")
    for read_only in (False, True):
        with pytest.raises(StoreTooNew, match=rf"version {known + 3}, .* up to {known}:"):
            await SqliteStore(tmp_path / "a.db", read_only=read_only).open()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (known + 3,)


async def test_a_failed_migration_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "a.db"):
        pass
    good = schema.migrations()
    bad = (*good, "CREATE TABLE half (x); CREATE TABLE meta (x);")
    monkeypatch.setattr(schema, "migrations", lambda: bad)
    with pytest.raises(StoreError):
        await SqliteStore(tmp_path / "a.db").open()
    monkeypatch.setattr(schema, "migrations", lambda: (*good, "CREATE TABLE extra (x);"))
    async with opened(tmp_path / "a.db"):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    assert "extra" in names
    assert "half" not in names


async def test_tasks_of_the_first_schema_go_before_new_ones_of_their_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = schema.migrations()[:1]
    with monkeypatch.context() as former:
        former.setattr(schema, "migrations", lambda: first)
        with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
            schema.migrate(db, "a.db")
            for row_id in (7, 5):
                db.execute(
                    "INSERT INTO tasks (id, namespace, queue, kind, key, scheduled_event_id, stamp,"
                    " created_ns) VALUES (?, 'default', 'orders', 1, 1, 2, 0, 9)",
                    (row_id,),
                )
            db.commit()
    async with opened(tmp_path / "a.db") as store:
        urgent, later = task(9, 1, rank=1 << LEVEL_BITS), task(8, 1, rank=DEFAULT_RANK + 1)
        write = Write(1, 0, 1, b"state", record=record(1), put_tasks=[urgent, later])
        await store.commit([[write]])
        found = await store.tasks("default", "orders", 1, START, 10)
        assert [row.id for row in found] == [9, 5, 7, 8]
        assert [row.rank for row in found[1:3]] == [DEFAULT_RANK, DEFAULT_RANK]


async def test_a_database_whose_ids_are_used_up_says_so(tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"
    async with opened(path):
        pass
    with sqlite3.connect(path) as db:
        last = (1 << 39) - 70_000
        db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('reserved_id', ?)", (last,))
    db.close()
    async with opened(path) as store:
        key = await store.allocate(1)
        await store.commit([[start(key)]])
        with pytest.raises(StoreError, match="used up its ids"):
            await store.allocate(65_536)
        assert await store.load(key)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes. " * 500)
    with pytest.raises(StoreError, match=r"notes\.txt is not a usable database"):
        await SqliteStore(path).open()
    assert path.read_text() == "These are my notes. " * 500


async def test_a_database_of_another_program(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as db:
        db.execute("CREATE TABLE customers (name)")
    with pytest.raises(StoreError, match="another program"):
        await SqliteStore(tmp_path / "shop.db").open()


async def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="is a directory"):
        await SqliteStore(tmp_path).open()
    with pytest.raises(StoreUnavailable, match=r"cannot write in .*missing"):
        await SqliteStore(tmp_path / "missing" / "a.db").open()
    with pytest.raises(StoreUnavailable, match="does not exist"):
        await open_read_only(tmp_path / "a.db").open()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs a directory that no one can write")
async def test_a_directory_that_takes_no_files() -> None:
    with pytest.raises(StoreUnavailable, match="cannot write in /proc"):
        await SqliteStore("/proc/a.db").open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreUnavailable, match="cannot write in"):
            await SqliteStore(tmp_path / "a.db").open()
    finally:
        tmp_path.chmod(0o700)


async def test_looking_while_another_holds(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        key = await store.allocate(1)
        await store.commit([[start(key)]])
        async with opened(tmp_path / "a.db", read_only=True) as reader:
            assert await reader.find("default", f"workflow-{key}") == key
            with pytest.raises(StoreUnavailable, match="reading only"):
                await reader.commit([[step(key, 1)]])
            await store.commit([[step(key, 1)]])
            loaded = await reader.load(key)
            assert loaded is not None
            assert loaded.version == 2


# ---- trouble ----


async def test_a_full_database_loses_nothing_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        key = await store.allocate(1)
        await store.commit([[start(key)]])
        db = store._write_db
        assert db is not None
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 4}")
        big = step(key, 1, events=b"x" * 1_000_000, first_event_id=3, last_event_id=3)
        with pytest.raises(StoreUnavailable, match="no space left"):
            await store.commit([[big]])
        loaded = await store.load(key)
        assert loaded is not None
        assert loaded.version == 1
        assert await store.history(key, 3, 3, limit=1) == []
        db.execute("PRAGMA max_page_count = 1000000")
        assert await store.commit([[big]]) == []
        assert len(await store.history(key, 3, 3, limit=1)) == 1


FULL_DISK = """
import asyncio, resource, sys
sys.path.insert(0, sys.argv[2])
from store_rows import start, step
from perdure.store.contract import StoreUnavailable
from perdure.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    key = await store.allocate(1)
    await store.commit([[start(key)]])
    version, failed = 1, 0
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    for size in (1, 1):
        for n in range(40):
            write = step(key, version, events=b"x" * 50_000,
                         first_event_id=version + 2, last_event_id=version + 2)
            try:
                assert await store.commit([[write]]) == []
                version += 1
            except StoreUnavailable as error:
                failed += 1
                assert sys.argv[1] in str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    loaded = await store.load(key)
    batches = await store.history(key, 1, 10_000, limit=10_000)
    await store.close()
    print(failed, version, loaded.version, len(batches))

asyncio.run(main())
"""


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.db"), str(HERE)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    failed, version, stored, batches = map(int, done.stdout.split())
    assert failed > 0, "the limit was never met"
    assert version > 40, "commits must work again when there is room"
    assert (stored, batches) == (version, version)


CRASH = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from store_rows import start, step
from perdure.store.sqlite import SqliteStore, store as module
module.CHECKPOINT_PAGES = 300

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    while True:
        size = 1 if int(sys.argv[3]) else 40
        first = await store.allocate(size)
        units = [[start(first + n, events=b"e" * 300)] for n in range(size)]
        assert await store.commit(units) == []
        more = [[step(first + n, 1, put_items=[(1, b"i")])] for n in range(size)]
        assert await store.commit(more) == []
        print(first, size, flush=True)

asyncio.run(main())
"""


def _run_and_kill(path: Path, lines: int, small: bool) -> list[tuple[int, int]]:
    """Start the writer, read some acknowledgements, kill it; all that it ever acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-c", CRASH, str(path), str(HERE), str(int(small))],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.readlines()
    whole = [line.split() for line in acknowledged if line.endswith("\n")]
    assert len(whole) >= lines
    return [(int(first), int(size)) for first, size in whole]


async def test_kill_loses_nothing_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(7)
    path = tmp_path / "a.db"
    everything: list[int] = []
    for round_ in range(6):
        for first, size in _run_and_kill(path, rng.randint(1, 60), small=round_ % 2 == 0):
            everything += range(first, first + size)
        async with opened(path) as store:
            for key in everything:
                loaded = await store.load(key)
                assert loaded is not None, key
                assert (loaded.version, loaded.items) == (2, [(1, b"i")])
            db = store._read_db
            assert db is not None
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert await store.allocate(1) > max(everything)
    assert len(everything) == len(set(everything)), "an id was handed out twice"


async def test_a_copy_of_the_files_at_any_moment_is_whole(tmp_path: Path) -> None:
    """What a power cut leaves: database and log as they are, the rest gone."""
    async with opened(tmp_path / "a.db") as store:
        key = await store.allocate(1)
        await store.commit([[start(key)]])
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("a.db", "a.db-wal"):
            shutil.copy(tmp_path / name, copy / name)
    async with opened(copy / "a.db") as store:
        assert await store.load(key) is not None


# ---- how it commits ----


@pytest.mark.parametrize("commit_s", [0.0, 1.0])
async def test_slow_disks_are_waited_for_on_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit_s: float
) -> None:
    threaded = 0
    original = SqliteStore._on_writer

    async def counted(writer, work):  # type: ignore[no-untyped-def]
        nonlocal threaded
        threaded += 1
        await original(writer, work)

    async with opened(tmp_path / "a.db") as store:
        key = await store.allocate(30)
        monkeypatch.setattr(SqliteStore, "_on_writer", staticmethod(counted))
        store._commit_s = commit_s
        await store.commit([[start(key)]])
        assert threaded == (1 if commit_s else 0)
        await store.commit([[start(key + n)] for n in range(1, 30)])
        assert threaded == (2 if commit_s else 1)


async def test_the_log_is_written_back_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHECKPOINT_PAGES", 100)
    async with opened(tmp_path / "a.db") as store:
        key = await store.allocate(1)
        await store.commit([[start(key)]])
        for version in range(1, 400):
            await store.commit([[step(key, version)]])
        log_size_bytes = (tmp_path / "a.db-wal").stat().st_size
    assert log_size_bytes < 200 * 4_200


async def test_a_step_touches_no_index_but_that_of_history(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        db = store._write_db
        assert db is not None
        columns = {
            column
            for (index,) in db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'states'"
            )
            for (_, _, column) in db.execute(f"PRAGMA index_info({index})")
        }
    assert columns == {"wake_at_ns"}


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query("default"), "runs_by_start"),
        (Query("default", after=(5, 5)), "runs_by_start"),
        (Query("default", where=Compare(Column.WORKFLOW_TYPE, "=", "t")), "runs_by_type"),
        (
            Query("default", where=Compare(Column.WORKFLOW_TYPE, "=", "t"), after=(5, 5)),
            "runs_by_type",
        ),
        (Query("default", where=Compare(Column.STATUS, "=", 1)), "runs_by_status"),
        (Query("default", where=Compare(Column.WORKFLOW_ID, "=", "w")), "runs_by_workflow_id"),
        (Query("default", where=Compare(Column.RUN_ID, "=", "w")), "runs_by_run_id"),
        (Query("default", where=StartsWith(Column.WORKFLOW_ID, "w")), "runs_by_workflow_id"),
        (Query("default", order=(Order(Column.START),)), "runs_by_start"),
    ],
)
async def test_lists_use_their_index(tmp_path: Path, query: Query, index: str) -> None:
    async with opened(tmp_path / "a.db") as store:
        sql, parameters = render.select(query)
        db = store._read_db
        assert db is not None
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert any(f"USING INDEX {index} " in line for line in plan), plan
    if not isinstance(query.where, StartsWith) and index != "runs_by_run_id":
        assert not any("TEMP B-TREE" in line for line in plan), plan


async def test_hot_reads_use_their_index(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        db = store._read_db
        assert db is not None
        for name, statement in store_module.SQL.items():
            if not statement.startswith(("SELECT", "UPDATE", "DELETE")):
                continue
            named = {"key": 1, "first": 1, "last": 2, "limit": 3, "count": 4}
            parameters = named if ":key" in statement else (1,) * statement.count("?")
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            scans = [line for line in plan if line.startswith("SCAN ") and "INDEX" not in line]
            few = name in {"has_messages", "namespaces"}
            assert few or not scans, (name, plan)


async def test_records_come_back_in_their_fields(tmp_path: Path) -> None:
    """Columns and fields are matched by position: each field gets a value of its own here."""
    values = {
        name: (number + 1 if isinstance(getattr(record(1), name), int) else f"{name}!")
        for number, name in enumerate(record(1).__struct_fields__)
    }
    values |= {"info": b"i", "memo": b"m", "attributes": b"a", "search_attributes": {"A": True}}
    full = record(**values)  # type: ignore[arg-type]
    async with opened(tmp_path / "a.db") as store:
        await store.commit([[Write(key=full.key, based_on=0, version=1, state=b"", record=full)]])
        loaded = await store.load(full.key)
        assert loaded is not None
        assert loaded.record == full
        assert await store.list_runs(Query(full.namespace)) == [full]


async def test_closing_waits_for_the_commit_under_way(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db")
    await store.open()
    key = await store.allocate(50)
    commit = asyncio.ensure_future(store.commit([[start(key + n)] for n in range(50)]))
    await asyncio.sleep(0)
    await store.close()
    assert await commit == []
    async with opened(tmp_path / "a.db") as again:
        assert await again.count_runs(Query("default")) == [([], 50)]
