"""The service is one class made of parts, one for each kind of RPC."""

from __future__ import annotations

from collections import defaultdict

from perdure.service.workflow_service import WorkflowService


def test_no_part_of_the_service_hides_a_method_of_another() -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for part in WorkflowService.__bases__:
        for name in vars(part):
            if not name.startswith("__"):
                owners[name].append(part.__name__)
    assert len(owners) > 40
    assert {name: parts for name, parts in owners.items() if len(parts) > 1} == {}
