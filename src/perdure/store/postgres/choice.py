"""Which units of a batch can be written, decided from what the database holds under lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from perdure.store.contract import Record, Unit

WorkflowId = tuple[str, str]  # namespace, workflow id


def lock_number(workflow: WorkflowId) -> int:
    """The advisory lock of a workflow id; two that share a number only wait for each other."""
    namespace, workflow_id = workflow
    text = f"{len(namespace)}:{namespace}{workflow_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big", signed=True)


class Choice:
    """The stored facts that a batch depends on, brought forward by each unit that is accepted.

    Args:
        versions: of the batch's runs that exist, by key.
        open_runs: the keys of open runs of the workflow ids that the batch starts.
        run_ids: the (namespace, run id) pairs of the batch's new runs that exist already.
        tasks: ids of the task rows to drop that exist.
    """

    def __init__(
        self,
        versions: Mapping[int, int],
        open_runs: Mapping[WorkflowId, int],
        run_ids: set[tuple[str, str]],
        tasks: set[int],
    ) -> None:
        self._versions = dict(versions)
        self._open_runs = dict(open_runs)
        self._run_ids = set(run_ids)
        self._tasks = set(tasks)

    def accept(self, unit: Unit) -> bool:
        """Take a unit in as a whole, or change nothing and return False."""
        versions: dict[int, int] = {}
        records: dict[int, Record] = {}
        started: set[int] = set()
        for write in unit:
            stored = versions.get(write.key, self._versions.get(write.key, 0))
            if stored != write.based_on:
                return False
            versions[write.key] = write.version
            if write.based_on == 0:
                started.add(write.key)
            if write.record is not None:
                records[write.key] = write.record
        tasks = self._tasks_after(unit)
        opened = self._opened_by(records, started)
        new_ids = [(records[key].namespace, records[key].run_id) for key in started]
        clash = len(set(new_ids)) < len(new_ids) or not self._run_ids.isdisjoint(new_ids)
        if tasks is None or opened is None or clash:
            return False
        self._versions.update(versions)
        self._open_runs = opened
        self._run_ids.update(new_ids)
        self._tasks = tasks
        return True

    def _tasks_after(self, unit: Unit) -> set[int] | None:
        tasks = self._tasks | {task.id for write in unit for task in write.put_tasks}
        for write in unit:
            for task_id in write.drop_tasks:
                if task_id not in tasks:
                    return None
                tasks.remove(task_id)
        return tasks

    def _opened_by(
        self, records: Mapping[int, Record], started: set[int]
    ) -> dict[WorkflowId, int] | None:
        """Closing runs come before new ones, which may bear the same workflow id."""
        runs = dict(self._open_runs)
        for key, record in records.items():
            workflow = (record.namespace, record.workflow_id)
            if record.close_ns and runs.get(workflow) == key:
                del runs[workflow]
        for key in started:
            record = records[key]
            workflow = (record.namespace, record.workflow_id)
            if not record.close_ns and runs.setdefault(workflow, key) != key:
                return None
        return runs


def choose(choice: Choice, units: Sequence[Unit]) -> tuple[list[Unit], list[int]]:
    """The units to write, and the positions of those in conflict."""
    chosen: list[Unit] = []
    left_out: list[int] = []
    for index, unit in enumerate(units):
        if choice.accept(unit):
            chosen.append(unit)
        else:
            left_out.append(index)
    return chosen, left_out
