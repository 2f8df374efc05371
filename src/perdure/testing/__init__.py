"""For tests of workflows: virtual time, replay of recorded histories, and faults on purpose.

``environment`` is a node in memory that skips the time in which nothing happens. ``Replayer`` tries
recorded histories with today's code. ``FaultyStore`` and ``VirtualLoop`` are what perdure's own
simulation is made of.
"""

from perdure.testing.environment import Environment, environment
from perdure.testing.faults import Faults, FaultyStore
from perdure.testing.replaying import Replayer, ReplayResult
from perdure.testing.virtual_loop import Deadlock, VirtualLoop, run

__all__ = [
    "Deadlock",
    "Environment",
    "Faults",
    "FaultyStore",
    "ReplayResult",
    "Replayer",
    "VirtualLoop",
    "environment",
    "run",
]
