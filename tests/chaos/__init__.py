"""Three nodes on one PostgreSQL with a replica; everything is killed, cut off and restarted.

python -m tests.chaos --seconds 300 --seed 7      # or ./dev chaos

Workers, clients, workflows and the check at the end are those of tests/faults. Beside them there
are applications with nodes in their processes, which do the work of the examples.
"""

from __future__ import annotations

import tests.faults  # noqa: F401, it finds the examples
