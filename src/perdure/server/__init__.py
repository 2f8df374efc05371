"""The doors: how other processes reach a node.

The gRPC door (``door``) maps the RPCs of Temporal's services, as their descriptors list them
(``rpcs``), to the methods of a service object. What carries the bytes is a transport
(``transports``), of which there are several behind one small seam. Needs ``perdure[server]``.
"""
