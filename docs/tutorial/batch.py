import asyncio

import perdure
from perdure import activity, workflow


@activity
async def measure(path: str) -> int:
    return len(path)


@workflow
async def weigh(paths: list[str]) -> int:
    sizes = await workflow.map(measure, paths, concurrency=10)
    return sum(sizes)


@workflow
async def weigh_all(folders: dict[str, list[str]]) -> dict[str, int]:
    totals = await asyncio.gather(
        *(weigh.options(id=f"weigh-{name}")(paths) for name, paths in folders.items())
    )
    return dict(zip(folders, totals, strict=True))


if __name__ == "__main__":
    folders = {"a": ["a/1", "a/22"], "b": [f"b/{n}" for n in range(50)]}
    print(perdure.execute(weigh_all, folders, target="sqlite:///batch.db", id="weigh-all"))
