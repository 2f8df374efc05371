import asyncio
from datetime import timedelta

import perdure
from perdure import UpdateFailedError, workflow


@workflow
class Approval:
    def __init__(self) -> None:
        self.text = ""
        self.revision = 0
        self.decision: str | None = None

    @workflow.run
    async def run(self, text: str) -> str:
        self.text = self.text or text
        decided = await workflow.wait_condition(
            lambda: self.decision is not None, timeout=timedelta(days=7)
        )
        return f"{self.decision}: {self.text}" if decided else "expired"

    @workflow.signal
    def decide(self, decision: str) -> None:
        self.decision = decision

    @workflow.query
    def status(self) -> str:
        return f"revision {self.revision}, {self.decision or 'open'}"

    @workflow.update
    async def amend(self, text: str) -> int:
        self.text = text
        self.revision += 1
        return self.revision

    @amend.validator
    def check_amend(self, text: str) -> None:
        if not text:
            raise ValueError("text: must not be empty")


async def main() -> None:
    async with perdure.connect("sqlite:///approval.db") as client, client.worker():
        handle = await client.start(Approval, "a first text", id="notice-1")
        print(await handle.update(Approval.amend, "a better text"))
        try:
            await handle.update(Approval.amend, "")
        except UpdateFailedError as error:
            print(error.cause)
        print(await handle.query(Approval.status))
        await handle.signal(Approval.decide, "approved")
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
