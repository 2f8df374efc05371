"""The workflow runtime: history in, commands out.

A run of a workflow is a coroutine on its own small event loop, which moves only when history moves.
Nothing in here does I/O except `processor`, which talks with the service it is handed.
"""
