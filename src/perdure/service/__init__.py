"""Temporal's API over the engine and a store, callable in process.

``Node`` is the whole of it: one async method per RPC on ``node.service``. Inside, all state changes
happen synchronously on the loop's thread, through ``Executions.transact``; the ``Committer`` writes
many of them in one database transaction and only then are callers answered and tasks handed out.
"""
