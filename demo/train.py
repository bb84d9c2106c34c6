"""Train the demonstration's checkpoint from scratch: data set, tokenizer, untrained weights, `python -m finetune`.

    python -m demo.train --data DATA --output CHECKPOINT

About two hours on two cores. Knows the model's sizes and what training is asked for; how it trains is finetune's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from demo.untrained import text_config, train_tokenizer, vision_config, write_untrained

VOCABULARY = 12_000
INITIAL_DEVIATION = 0.03  # of the weights
# The real architecture at six million parameters: DeepStack of three, M-RoPE, grouped queries, norms of q and k.
ARCHITECTURE: dict[str, Any] = {
    "text_config": {**text_config(192, 4, 6, 3, 32, 512, (6, 5, 5)), "initializer_range": INITIAL_DEVIATION},
    "vision_config": {
        **vision_config(128, 4, 4, 512, 192, (0, 1, 2), num_position_embeddings=64),
        "initializer_range": INITIAL_DEVIATION,
    },
    "tie_word_embeddings": True,
}
MAX_PIXELS = 64 * 64  # of an image: four visual tokens
FINETUNE = {
    "language": "full",
    "vision": "full",
    "max-steps": 4000,
    "batch-size": 768,
    "learning-rate": 2e-3,
    "warmup": 0.05,
    "weight-decay": 0.05,
    "temperature": 0.05,
    "max-pixels": MAX_PIXELS,
    "save-steps": 200,
    "log-steps": 10,
    "bf16": None,
}
