"""The decorator, and calling activities outside of workflows."""

from __future__ import annotations

import asyncio
import pickle
import threading
from datetime import timedelta
from typing import Any

import pytest

from perdure.sdk.activity import Activity, activity
from perdure.sdk.errors import NotInActivityError
from perdure.sdk.registry import ACTIVITIES, Registry, by_name
from perdure.sdk.worker import activity_definitions, defined_in


@activity
async def double(x: int) -> int:
    """Twice as much."""
    return 2 * x


@activity(name="where", start_to_close_timeout=timedelta(seconds=3))
def thread_name() -> str:
    return threading.current_thread().name


class Shop:
    def __init__(self, tax: int) -> None:
        self.tax = tax

    @activity
    async def price(self, net: int, *, extra: int = 0) -> int:
        return net + self.tax + extra

    @activity(name="stock")
    def count(self) -> int:
        return self.tax


async def test_outside_of_a_workflow_it_just_runs() -> None:
    assert await double(4) == 8
    assert await Shop(3).price(10, extra=1) == 14
    assert await asyncio.gather(double(1), Shop(7).count()) == [2, 7]


async def test_a_plain_function_runs_in_a_thread_and_is_awaited() -> None:
    assert await thread_name() != threading.current_thread().name
    assert thread_name.function() == threading.current_thread().name


def test_it_looks_like_its_function() -> None:
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert (double.name, thread_name.name) == ("double", "where")
    assert double.is_async
    assert not thread_name.is_async


def test_options_make_a_copy() -> None:
    hour = timedelta(hours=1)
    changed = thread_name.options(heartbeat_timeout=hour)
    assert changed.defaults.heartbeat_timeout == hour
    assert changed.defaults.start_to_close_timeout == timedelta(seconds=3)
    assert thread_name.defaults.heartbeat_timeout is None
    assert changed.name == "where"


def test_methods_bind_to_their_instance() -> None:
    shop = Shop(3)
    assert Shop.price.is_method
    assert not shop.price.is_method
    assert shop.price.signature.types == (int, int)
    assert Shop.price.unbound().signature.types == (int, int)
    assert Shop.price.signature.types[1:] == (int, int)


def test_it_pickles_by_its_place() -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    bound = pickle.loads(pickle.dumps(Shop(9).count))
    assert bound.function() == 9


@pytest.mark.parametrize(
    ("arguments", "function", "text"),
    [
        ({}, 3, "a function"),
        ({}, int, "a function"),
        ({}, double, "already"),
        ({"executor": "fiber"}, thread_name.function, "executor"),
        ({"executor": "process"}, double.function, "async"),
        ({"name": ""}, thread_name.function, "name: "),
        ({"start_to_close_timeout": 3}, thread_name.function, "start_to_close_timeout: "),
    ],
)
def test_mistakes_are_reported_at_once(arguments: dict[str, Any], function: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        activity(**arguments)(function)


def test_generators_are_refused() -> None:
    def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        activity(generator)


@pytest.mark.parametrize(
    "call",
    [activity.info, activity.heartbeat, activity.is_cancelled, activity.client,
     activity.raise_complete_async, activity.cancellation_reason, activity.shield],
    ids=lambda call: call.__name__,
)  # fmt: skip
def test_the_namespace_is_for_running_activities(call: Any) -> None:
    with pytest.raises(NotInActivityError):
        call()
    assert not activity.in_activity()


# --- the registry ---------------------------------------------------------------------------------


def test_what_is_defined_is_found_by_module() -> None:
    _, found = defined_in(__name__)
    assert {made.name for made in found} >= {"double", "where"}
    assert not {made.name for made in found} & {"price", "stock"}  # they need an instance
    assert defined_in("no.such.module") == ([], [])


def test_what_is_gone_is_not_remembered() -> None:
    registry = Registry("activity")

    def local() -> None: ...

    made: Any = Activity(local, name="local", defaults=double.defaults)
    registry.add(made)
    assert list(registry) == [made]
    del made
    assert list(registry) == []


def test_two_definitions_of_one_name_are_refused() -> None:
    def make() -> Activity[[], None]:
        def double() -> None: ...

        return activity(double)

    other = make()
    with pytest.raises(ValueError, match=r"two activity definitions are named 'double'"):
        by_name("activity", [double, other])
    again = by_name("activity", [make(), other])  # the same place, run again
    assert again["double"] is other
    assert double in list(ACTIVITIES)


def test_a_worker_takes_functions_bound_methods_and_instances() -> None:
    shop = Shop(1)
    assert set(activity_definitions([double, shop.price])) == {"double", "price"}
    assert set(activity_definitions([shop])) == {"price", "stock"}
    with pytest.raises(TypeError, match="bound to an instance"):
        activity_definitions([Shop.price])
    with pytest.raises(TypeError, match="put @activity on it"):
        activity_definitions([print])
