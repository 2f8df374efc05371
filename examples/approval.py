"""Approval: a document waits for people. They look (query), change (update), decide (signal).

python examples/approval.py               # plays the people, too; state in approval.db

python examples/approval.py --wait        # only starts it and waits: decide from another place,
                                          # or stop it and start it again days later
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from datetime import timedelta

import outside
import perdure
from perdure import Client, RetryPolicy, WorkflowHandle, activity, workflow

PATIENT = RetryPolicy(
    initial_interval=timedelta(milliseconds=20), maximum_interval=timedelta(milliseconds=200)
)


@dataclass
class Status:
    text: str
    revision: int
    decision: str | None


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
async def publish(name: str, text: str) -> str:
    """Put the document on the notice board; returns its address."""
    await outside.call("board", outside.call_key())
    outside.note_once("board", name, text=text)
    return f"https://board.example/{name}"


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
async def check_spelling(text: str) -> str:
    """Correct a text."""
    await outside.call("spelling", outside.call_key())
    return text.replace("teh", "the")


@workflow
class Approval:
    """One document on its way to the notice board."""

    def __init__(self) -> None:
        self.text = ""
        self.revision = 0
        self.decision: str | None = None

    @workflow.run
    async def run(self, name: str, text: str) -> str:
        self.text = self.text or text
        decided = await workflow.wait_condition(
            lambda: self.decision is not None, timeout=timedelta(days=7)
        )
        if not decided:
            return "expired"
        if self.decision != "approved":
            return f"{self.decision}: {self.text}"
        return await publish(name, self.text)

    @workflow.signal
    def decide(self, decision: str) -> None:
        self.decision = decision

    @workflow.query
    def status(self) -> Status:
        return Status(self.text, self.revision, self.decision)

    @workflow.update
    async def amend(self, text: str) -> int:
        """Change the document; returns the number of the revision."""
        self.text = await check_spelling(text)
        self.revision += 1
        return self.revision

    @amend.validator
    def check_amend(self, text: str) -> None:
        if not text:
            raise ValueError("text: must not be empty")
        if self.decision is not None:
            raise ValueError(f"it is {self.decision} already")


async def play(handle: WorkflowHandle[str], *, quiet: bool = False) -> None:
    """What the people do. Each update has an id, so that sending it again changes nothing."""

    def say(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    for number, text in enumerate(["teh second text", "the third text"], start=1):
        revision = await handle.update(Approval.amend, text, id=f"amendment-{number}")
        say(f"  amended: revision {revision}")
    try:
        await handle.update(Approval.amend, "", id="empty")
    except perdure.UpdateFailedError as error:
        say(f"  refused: {error.cause}")
    say(f"  now it reads: {await handle.query(Approval.status)}")
    await handle.signal(Approval.decide, "approved")


async def run(
    client: Client, name: str = "notice", *, alone: bool = False, quiet: bool = False
) -> str:
    """Start an approval, or find it again, and wait for its end."""
    handle = await client.start(Approval, name, "the first text", id=name, request_id=name)
    if not alone and (await handle.query(Approval.status)).decision is None:
        await play(handle, quiet=quiet)
    return await handle.result()


async def main(arguments: argparse.Namespace) -> None:
    async with perdure.connect(arguments.db) as client, client.worker():
        print(await run(client, arguments.name, alone=arguments.wait))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--db", default="sqlite:///approval.db", help="where runs are kept")
    parser.add_argument("--name", default="notice", help="name of the document")
    parser.add_argument("--wait", action="store_true", help="leave the decision to others")
    try:
        asyncio.run(main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit("interrupted; start it again to go on")
