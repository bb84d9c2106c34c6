"""From a Qwen3-VL-Embedding checkpoint to a deployable model repository: `python -m export`."""
