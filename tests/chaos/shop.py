"""An application with a node in its own process: orders and a pipeline, the examples.

python -m tests.chaos.shop postgresql://… folder orders chunks

Whatever is done already is found done; it ends when all is.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from datetime import timedelta

from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest

import orders
import perdure
import pipeline
from perdure.api.errors import NamespaceAlreadyExists

NAMESPACE = "shop"


async def main(dsn: str, folder: str, order_count: int, chunk_count: int) -> None:
    """Do all of it."""
    async with perdure.connect(dsn, namespace=NAMESPACE) as client:
        request = RegisterNamespaceRequest(namespace=NAMESPACE)
        request.workflow_execution_retention_period.FromTimedelta(timedelta(days=1))
        with suppress(NamespaceAlreadyExists):
            await client.service.register_namespace(request)
        async with client.worker():
            await asyncio.gather(
                orders.run(client, order_count, quiet=True),
                pipeline.run(client, pipeline.Job(folder, chunk_count), quiet=True),
            )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
