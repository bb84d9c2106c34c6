"""From a Qwen3-VL-Embedding checkpoint to a deployable model repository: `python -m export`.

Writes the `preprocessing.json` that `settings.py` derives from a checkpoint, which this package finds beside the code
that reads it, in model_repository/preprocess/1.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported

PREPROCESS = Path(__file__).resolve().parents[1] / "model_repository" / "preprocess" / "1"
if str(PREPROCESS) not in sys.path:
    sys.path.append(str(PREPROCESS))
