"""The clock of a node, whatever is done to the machine's: it never stops, nor rings too early."""

from __future__ import annotations

import asyncio

from perdure.service.clock import SystemClock
from perdure.testing.virtual_loop import VirtualLoop, run

SECOND_NS = 1_000_000_000
HOUR_NS = 3_600 * SECOND_NS


class Machine:
    """A machine whose clock may be set while time passes steadily."""

    def __init__(self) -> None:
        self.steady = 5 * SECOND_NS
        self.wall = 1_700_000_000 * SECOND_NS
        self.clock = SystemClock(lambda: self.wall, lambda: self.steady)

    def run(self, passed_ns: int) -> int:
        """Let time pass; what the node's clock shows then."""
        for _ in range(10):  # somebody looks now and then
            self.steady += passed_ns // 10
            self.wall += passed_ns // 10
            shown_ns = self.clock.now_ns()
        return shown_ns

    def follow(self, other_ns: int) -> None:
        """Hear at once what another clock shows."""
        self.clock.follow(other_ns, self.clock.now_ns())


def test_it_shows_what_the_machine_does() -> None:
    machine = Machine()
    assert machine.run(SECOND_NS) == machine.wall
    machine.wall += HOUR_NS
    assert machine.run(SECOND_NS) == machine.wall


def test_when_the_machines_clock_is_set_back_it_goes_on_until_they_agree() -> None:
    machine = Machine()
    before_ns = machine.run(SECOND_NS)
    machine.wall -= 60 * SECOND_NS
    assert machine.run(20 * SECOND_NS) == before_ns + 10 * SECOND_NS
    assert machine.run(200 * SECOND_NS) == machine.wall


def test_once_it_follows_another_the_machines_clock_does_not_matter() -> None:
    machine = Machine()
    machine.follow(machine.wall)
    began_ns = machine.clock.now_ns()
    for jump_ns in (HOUR_NS, -2 * HOUR_NS, 0):
        machine.wall += jump_ns
        machine.run(SECOND_NS)
    machine.follow(began_ns + 3 * SECOND_NS)
    assert machine.run(SECOND_NS) == began_ns + 4 * SECOND_NS


def test_the_first_look_at_another_clock_counts_even_if_it_is_behind() -> None:
    machine = Machine()
    machine.run(SECOND_NS)
    machine.follow(machine.wall - HOUR_NS)
    assert machine.clock.now_ns() == machine.wall - HOUR_NS


def test_the_followed_clock_may_be_set_too() -> None:
    machine = Machine()
    machine.follow(machine.wall)
    began_ns = machine.clock.now_ns()
    machine.follow(began_ns - 60 * SECOND_NS)
    assert machine.run(20 * SECOND_NS) == began_ns + 10 * SECOND_NS
    assert machine.run(200 * SECOND_NS) == began_ns + 160 * SECOND_NS
    machine.follow(began_ns + HOUR_NS)
    assert machine.clock.now_ns() == began_ns + HOUR_NS


def test_an_answer_that_took_long_says_only_between_which_times_it_is() -> None:
    machine = Machine()
    machine.follow(machine.wall)
    asked_ns = machine.clock.now_ns()
    machine.run(10 * SECOND_NS)
    machine.clock.follow(asked_ns + 4 * SECOND_NS, asked_ns)
    assert machine.clock.now_ns() == asked_ns + 10 * SECOND_NS  # for it may well be so
    machine.clock.follow(asked_ns + 12 * SECOND_NS, asked_ns)
    assert machine.clock.now_ns() == asked_ns + 12 * SECOND_NS


# -- alarms ----------------------------------------------------------------------------------------


def test_an_alarm_rings_in_time_though_the_clock_is_set_while_it_waits() -> None:
    async def ahead() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        jump_ns = 0
        clock = SystemClock(lambda: loop.now_ns() + jump_ns, loop.now_ns)
        rung = asyncio.Event()
        clock.call_at(clock.now_ns() + HOUR_NS, rung.set)
        await asyncio.sleep(1)
        assert not rung.is_set()
        jump_ns = HOUR_NS  # a machine that slept
        async with asyncio.timeout(60):
            await rung.wait()

    run(ahead())


def test_an_alarm_rings_though_the_clock_is_set_back_and_never_too_early() -> None:
    async def back() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        jump_ns = 0
        clock = SystemClock(lambda: loop.now_ns() + jump_ns, loop.now_ns)
        due_ns, rung = clock.now_ns() + 20 * SECOND_NS, asyncio.Event()
        clock.call_at(due_ns, rung.set)
        jump_ns = -HOUR_NS
        async with asyncio.timeout(60):
            await rung.wait()
        assert clock.now_ns() >= due_ns

    run(back())


def test_an_alarm_that_was_cancelled_does_not_ring() -> None:
    async def cancelled() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = SystemClock(loop.now_ns, loop.now_ns)
        rung = asyncio.Event()
        alarm = clock.call_at(clock.now_ns() + HOUR_NS, rung.set)
        await asyncio.sleep(100)  # it has looked at the clock meanwhile
        alarm.cancel()
        await asyncio.sleep(2 * 3_600)
        assert not rung.is_set()

    run(cancelled())
