"""A server that is killed again and again, while official-SDK workers and clients go on.

python -m tests.faults --kills 100 --seed 7      # or ./dev crash --server
"""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if str(EXAMPLES) not in sys.path:  # what the embedded crash test has is used here, too
    sys.path.insert(0, str(EXAMPLES))
