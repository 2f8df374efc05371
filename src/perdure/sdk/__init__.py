"""What application authors use: workflows, activities, client, worker, converter, errors.

It talks to an object with one ``async`` method per RPC and knows nothing of what stands behind it:
a node in this process, or a server. Import the public names from ``perdure``.
"""
