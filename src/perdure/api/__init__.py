"""The narrow waist: Temporal's API messages, and the few things both of its sides need.

Everything a client or a worker asks of perdure is one request message of
``temporal.api.workflowservice.v1`` answered by one response message. The messages come from the
``temporalio`` package; this room adds the errors an RPC may raise, time conversions, and a small
protobuf writer for the hot path. It imports nothing else of perdure.
"""
