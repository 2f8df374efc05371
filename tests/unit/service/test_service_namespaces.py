"""Namespaces as a registry over a store."""

from __future__ import annotations

import json

import msgspec
import pytest
from temporalio.api.common.v1 import Payload, SearchAttributes

from perdure.api.errors import (
    FailedPrecondition,
    InvalidArgument,
    NamespaceAlreadyExists,
    NamespaceNotFound,
)
from perdure.service import search_attributes
from perdure.service.namespaces import DELETED, DEPRECATED, Namespace, Namespaces
from perdure.service.settings import Settings
from perdure.store.contract import StoreUnavailable
from perdure.store.sqlite import SqliteStore


async def opened(store: SqliteStore, *, auto_register: bool = True) -> Namespaces:
    made = Namespaces(store, settings=Settings(auto_register_search_attributes=auto_register))
    await made.open()
    return made


@pytest.fixture
async def store() -> SqliteStore:
    made = SqliteStore(":memory:")
    await made.open()
    return made


def text(name: str) -> SearchAttributes:
    value = Payload(metadata={"encoding": b"json/plain"}, data=json.dumps("x").encode())
    return SearchAttributes(indexed_fields={name: value})


async def test_default_is_there_and_stays_the_same(store: SqliteStore) -> None:
    first = (await opened(store)).get("default")
    assert (await opened(store)).get("default") == first


async def test_unknown_deleted_and_unnamed_ones_are_refused(store: SqliteStore) -> None:
    namespaces = await opened(store)
    await namespaces.register(Namespace("gone", "id-1", state=int(DELETED)))
    for name in ("gone", "never"):
        with pytest.raises(NamespaceNotFound):
            namespaces.get(name)
    with pytest.raises(InvalidArgument):
        namespaces.get("")
    assert [found.name for found in namespaces.all()] == ["default"]


async def test_a_deprecated_namespace_takes_no_starts(store: SqliteStore) -> None:
    namespaces = await opened(store)
    await namespaces.register(Namespace("old", "id-1", state=int(DEPRECATED)))
    assert namespaces.get("old").id == "id-1"
    with pytest.raises(FailedPrecondition, match="Must be Registered"):
        namespaces.get_for_start("old")


async def delete(namespaces: Namespaces, name: str) -> Namespace:
    return await namespaces.change(
        name, lambda now: msgspec.structs.replace(now, state=int(DELETED))
    )


async def test_a_name_is_taken_until_it_is_deleted(store: SqliteStore) -> None:
    namespaces = await opened(store)
    await namespaces.register(Namespace("n", "id-1"))
    with pytest.raises(NamespaceAlreadyExists):
        await namespaces.register(Namespace("n", "id-2"))
    deleted = await delete(namespaces, "n")
    assert not await namespaces.register(Namespace("n", "id-2"))
    assert await namespaces.register(Namespace("n", "id-2"), deleted)
    assert (await opened(store)).get("n").id == "id-2"


async def test_what_another_node_deleted_has_to_be_emptied_first(store: SqliteStore) -> None:
    here, elsewhere = await opened(store), await opened(store)
    await elsewhere.register(Namespace("n", "id-1"))
    deleted = await delete(elsewhere, "n")
    assert not await here.register(Namespace("n", "id-2"))
    assert here.find_deleted("n") == deleted
    assert await here.still_deleted(deleted)
    assert await here.register(Namespace("n", "id-2"), deleted)
    assert not await elsewhere.still_deleted(deleted)
    again = await delete(here, "n")
    assert not await elsewhere.still_deleted(deleted)
    assert await elsewhere.still_deleted(again)


async def test_an_attribute_that_is_used_is_registered_by_flush(store: SqliteStore) -> None:
    namespaces = await opened(store)
    namespaces.admit("default", text("Customer"))
    assert namespaces.dirty
    assert namespaces.values("default", text("Customer")) == {"Customer": "x"}
    assert "Customer" not in (await opened(store)).get("default").search_attributes
    await namespaces.flush()
    assert not namespaces.dirty
    found = (await opened(store)).get("default").search_attributes
    assert found == {"Customer": search_attributes.KEYWORD}


async def test_a_change_keeps_what_was_noted_meanwhile(store: SqliteStore) -> None:
    namespaces = await opened(store)

    def described(now: Namespace) -> Namespace:
        changed = msgspec.structs.replace(now, description="new")
        namespaces.admit("default", text("Customer"))  # used while the change is being written
        return changed

    await namespaces.change("default", described)
    assert "Customer" in namespaces.get("default").search_attributes
    await namespaces.flush()
    found = (await opened(store)).get("default")
    assert (found.description, list(found.search_attributes)) == ("new", ["Customer"])


async def test_what_a_failing_store_did_not_write_stays_noted(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespaces = await opened(store)
    namespaces.admit("default", text("Customer"))

    async def fail(row: object, former: object) -> None:
        raise StoreUnavailable("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "put_namespace", fail)
        with pytest.raises(StoreUnavailable):
            await namespaces.flush()
    assert namespaces.dirty
    await namespaces.flush()
    assert "Customer" in (await opened(store)).get("default").search_attributes


async def test_without_auto_registration_nothing_is_noted(store: SqliteStore) -> None:
    namespaces = await opened(store, auto_register=False)
    with pytest.raises(InvalidArgument):
        namespaces.admit("default", text("Customer"))
    assert not namespaces.dirty


async def test_forgotten_attributes_may_come_back(store: SqliteStore) -> None:
    namespaces = await opened(store)
    namespaces.admit("default", text("Customer"))
    await namespaces.flush()
    await namespaces.forget_search_attributes("default", ["Customer"])
    assert namespaces.values("default", text("Customer")) == {}
    namespaces.admit("default", text("Customer"))
    assert namespaces.dirty
