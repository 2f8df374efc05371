"""Which units of a batch can be written, decided from what the database holds under lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from perdure.store.contract import Record, Unit, Write
from perdure.store.folding import WorkflowId


class Current(NamedTuple):
    """The run that a workflow id leads to: the open one, else the last."""

    key: int
    is_open: bool


_NONE: Final = Current(0, False)


def lock_number(workflow: WorkflowId) -> int:
    """The advisory lock of a workflow id; two that share a number only wait for each other."""
    namespace, workflow_id = workflow
    text = f"{len(namespace)}:{namespace}{workflow_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big", signed=True)


class Choice:
    """The stored facts that a batch depends on, brought forward by each unit that is accepted.

    Args:
        versions: of the batch's runs that exist, by key.
        current: what the workflow ids lead to that the batch starts.
        run_ids: the (namespace, run id) pairs of the batch's new runs that exist already.
        tasks: ids of the task rows to drop that exist.
    """

    def __init__(
        self,
        versions: Mapping[int, int],
        current: Mapping[WorkflowId, Current],
        run_ids: set[tuple[str, str]],
        tasks: set[int],
    ) -> None:
        self._versions = dict(versions)
        self._current = dict(current)
        self._run_ids = set(run_ids)
        self._tasks = set(tasks)

    def accept(self, unit: Unit) -> bool:
        """Take a unit in as a whole, or change nothing and return False."""
        versions: dict[int, int] = {}
        records: dict[int, Record] = {}
        started: list[Write] = []
        for write in unit:
            stored = versions.get(write.key, self._versions.get(write.key, 0))
            if stored != write.based_on:
                return False
            versions[write.key] = write.version
            if write.based_on == 0:
                started.append(write)
            if write.record is not None:
                records[write.key] = write.record
        tasks = self._tasks_after(unit)
        current = self._current_after(records, started)
        new_ids = [(records[w.key].namespace, records[w.key].run_id) for w in started]
        clash = len(set(new_ids)) < len(new_ids) or not self._run_ids.isdisjoint(new_ids)
        if tasks is None or current is None or clash:
            return False
        self._versions.update(versions)
        self._current = current
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

    def _current_after(
        self, records: Mapping[int, Record], started: Sequence[Write]
    ) -> dict[WorkflowId, Current] | None:
        """Closing runs come before new ones, which may bear the same workflow id."""
        current = dict(self._current)
        for key, record in records.items():
            workflow = (record.namespace, record.workflow_id)
            if record.close_ns and current.get(workflow, _NONE).key == key:
                current[workflow] = Current(key, False)
        for write in started:
            record = records[write.key]
            workflow = (record.namespace, record.workflow_id)
            former = current.get(workflow, _NONE)
            is_open = not record.close_ns
            if is_open and former.is_open:
                return None
            if write.follows is not None and former != Current(write.follows, False):
                return None
            if not former.is_open:
                current[workflow] = Current(write.key, is_open)
        return current


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
