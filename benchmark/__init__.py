"""Speed, compared side by side in one run as ratios: `./scripts/benchmark WHAT --help`."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported
