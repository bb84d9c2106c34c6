"""Fine-tuning and evaluation: checkpoint in, checkpoint out.

Trains on what is served: items go through the server's own `preprocessing.py`, which this package finds in
model_repository/preprocess/1.
"""

import sys
from pathlib import Path

PREPROCESS = Path(__file__).resolve().parents[1] / "model_repository" / "preprocess" / "1"
if str(PREPROCESS) not in sys.path:
    sys.path.append(str(PREPROCESS))
