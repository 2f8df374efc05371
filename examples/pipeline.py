"""Pipeline: count words over some hundred files that come from a flaky source.

    python examples/pipeline.py               # 300 chunks in pipeline-data/, state in pipeline.db
    python examples/pipeline.py --chunks 1000

Every chunk is downloaded and counted, at most 16 at a time, and the counts are merged into one
table whose checksum is known. Kill it and start it again: chunks that are done stay done. The bar
is drawn from a query that asks the workflow how far it is.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import outside
import perdure
from perdure import Client, RetryPolicy, WorkflowHandle, activity, workflow

WORDS = [a + b + c for a in "bdklmnrst" for b in "aeiou" for c in "dklnrst"]
WORDS_PER_CHUNK = 2000
PARALLEL = 16
CHECKSUM_OF_300 = "44150a1c818117bc0ba681d5625620e087343066299c7c72fdf6aff1df61f968"

PATIENT = RetryPolicy(
    initial_interval=timedelta(milliseconds=20), maximum_interval=timedelta(milliseconds=200)
)


@dataclass
class Job:
    folder: str
    chunks: int


@dataclass
class Progressed:
    done: int
    total: int


@dataclass
class Table:
    words: int
    different: int
    checksum: str


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
async def download(folder: str, number: int) -> str:
    """Fetch one chunk from the source into a file; returns the file's path."""
    await outside.call("source", outside.call_key(), chunk=number)
    path = Path(folder) / f"chunk-{number:05}.txt"
    write_whole(path, chunk_text(number))
    return str(path)


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
def count(path: str) -> str:
    """Count the words of one file; returns the path of its counts."""
    outside.note("call", "count", outside.call_key(), path=path)
    source = Path(path)
    target = source.with_suffix(".json")
    write_whole(target, json.dumps(Counter(source.read_text(encoding="utf-8").split())))
    return str(target)


@activity(start_to_close_timeout=timedelta(seconds=30), retry=PATIENT)
def merge(folder: str, paths: list[str]) -> Table:
    """Add up all counts into one sorted table; returns what it amounts to."""
    outside.note("call", "merge", outside.call_key())
    total: Counter[str] = Counter()
    for path in paths:
        total.update(json.loads(Path(path).read_text(encoding="utf-8")))
    text = "".join(f"{word}\t{number}\n" for word, number in sorted(total.items()))
    write_whole(Path(folder) / "table.tsv", text)
    return Table(total.total(), len(total), hashlib.sha256(text.encode()).hexdigest())


@workflow
class Pipeline:
    """Download and count every chunk, some at a time, then merge."""

    def __init__(self) -> None:
        self.progressed = Progressed(0, 0)

    @workflow.run
    async def run(self, job: Job) -> Table:
        self.progressed.total = job.chunks
        gate = asyncio.Semaphore(PARALLEL)
        counted = await asyncio.gather(
            *(self.chunk(gate, job.folder, number) for number in range(job.chunks))
        )
        return await merge(job.folder, list(counted))

    async def chunk(self, gate: asyncio.Semaphore, folder: str, number: int) -> str:
        async with gate:
            counted = await count(await download(folder, number))
        self.progressed.done += 1
        return counted

    @workflow.query
    def progress(self) -> Progressed:
        return self.progressed


def chunk_text(number: int) -> str:
    """What the source holds: the same words for the same number, always."""
    words = random.Random(number).choices(WORDS, k=WORDS_PER_CHUNK)
    return " ".join(words) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def expected(chunks: int) -> Table:
    """The right answer, found without any of the machinery above."""
    total: Counter[str] = Counter()
    for number in range(chunks):
        total.update(chunk_text(number).split())
    text = "".join(f"{word}\t{times}\n" for word, times in sorted(total.items()))
    return Table(total.total(), len(total), hashlib.sha256(text.encode()).hexdigest())


async def run(client: Client, job: Job, *, quiet: bool = False) -> Table:
    """Start the pipeline, or find it again, and wait for its table with a bar on the screen."""
    name = f"pipeline-{job.chunks}"
    handle = await client.start(Pipeline, job, id=name, request_id=name)
    if quiet:
        return await handle.result()
    result = asyncio.ensure_future(handle.result())
    await draw(handle, result)
    return await result


async def draw(handle: WorkflowHandle[Table], result: asyncio.Future[Table]) -> None:
    """Draw the bar, five times a second, until the result is there."""
    columns = (TextColumn("counting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("counting", total=None)
        while True:
            finished, _ = await asyncio.wait([result], timeout=0.2)
            now = await handle.query(Pipeline.progress)
            bar.update(task, completed=now.done, total=now.total or None)
            if finished:
                return


async def main(arguments: argparse.Namespace) -> None:
    job = Job(arguments.data, arguments.chunks)
    async with perdure.connect(arguments.db) as client, client.worker():
        table = await run(client, job)
    print(f"{table.words} words, {table.different} different, sha256 {table.checksum}")
    right = CHECKSUM_OF_300 if job.chunks == 300 else expected(job.chunks).checksum
    sys.exit(0 if table.checksum == right else f"wrong: the checksum must be {right}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--db", default="sqlite:///pipeline.db", help="where runs are kept")
    parser.add_argument("--data", default=str(Path.cwd() / "pipeline-data"), help="for the files")
    parser.add_argument("--chunks", type=int, default=300, help="how many files")
    try:
        asyncio.run(main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit("interrupted; start it again to go on")
