"""The execution state machine: pure transitions, no I/O, no clock, no randomness of its own.

An ``Execution`` is one run in memory. A ``Transition`` is one step of it: an operation (a function
of this package: start, complete a workflow task, fire what is due …) reads and changes the
execution through the transition, which gathers the new events, the changed items and what must
happen next.
Operations validate before they change anything: one that raises has changed nothing.
"""
