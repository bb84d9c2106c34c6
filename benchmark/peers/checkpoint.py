"""Write a checkpoint of the 2B's shape with random weights, or of its first layers; and its language tower alone.

    python -m benchmark.peers.checkpoint --layers 4 --output DIR

The tokenizer is the demonstration's. DIR-text is the language tower as a Qwen3 model, for peers without a vision tower:
on text, where the three axes of a position are equal, the two compute the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from demo.untrained import ARCHITECTURE_2B, write_untrained

from ..report import ROOT


def architecture(layers: int) -> dict[str, Any]:
    """Return the 2B's architecture with `layers` layers in each tower; 0 leaves all of them."""
    if not layers:
        return ARCHITECTURE_2B
    deepstack = list(range(min(3, layers)))
    return {
        **ARCHITECTURE_2B,
        "text_config": {**ARCHITECTURE_2B["text_config"], "num_hidden_layers": layers},
        "vision_config": {**ARCHITECTURE_2B["vision_config"], "depth": layers, "deepstack_visual_indexes": deepstack},
    }


def write_text_tower(checkpoint: Path, output: Path) -> None:
    """Write the language tower of a checkpoint as a Qwen3 model that pools the last token."""
    output.mkdir()
    (output / "1_Pooling").mkdir()
    shutil.copyfile(checkpoint / "tokenizer_config.json", output / "tokenizer_config.json")
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = None  # callers write the last token themselves: see PROMPT in systems.py
    tower = "model.language_model."
    weights = {
        f"model.{name.removeprefix(tower)}": tensor
        for path in checkpoint.glob("*.safetensors")
        for name, tensor in load_file(path).items()
        if name.startswith(tower)
    }
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    settings = {
        "tokenizer": tokenizer,
        "config": text
        | {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": text["rope_parameters"]["rope_theta"]},
            "rope_theta": text["rope_parameters"]["rope_theta"],  # where transformers 4 looks
            "torch_dtype": "bfloat16",
        },
        "modules": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    }
    # where sentence-transformers 3 looks
    pooling = {"word_embedding_dimension": text["hidden_size"], "pooling_mode_lasttoken": True}
    pooling |= {"pooling_mode_mean_tokens": False, "include_prompt": True}
    for name, content in {**settings, "1_Pooling/config": pooling}.items():
        (output / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of each tower; 0: all, 28 and 24")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(ROOT / "demo/vlembed-emoji/tokenizer.json"))
    write_untrained(arguments.output, architecture(arguments.layers), tokenizer, dtype=torch.bfloat16)
    write_text_tower(arguments.output, arguments.output.with_name(f"{arguments.output.name}-text"))


if __name__ == "__main__":
    main()
