"""Who may import whom: the folders meet through artifacts and tensors, not through imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRITON = "triton_python_backend_utils"
EVALUATION = {"images", "numpy", "preprocessing", "sentence_transformers", "torch", "vlembed"}  # by way of the client
PEERS = ("bentoml", "fastapi", "litserve", "pytriton")  # scripts that run elsewhere, with the library of that name
# Longest prefix wins. Beside these, a file may import the standard library and the modules of its own package.
ALLOWED = {
    "model_repository/": {"numpy", TRITON},
    "model_repository/preprocess/1/": {"numpy", "PIL", "tokenizers"},
    "model_repository/preprocess/1/model.py": {"numpy", TRITON},
    "model_repository/preprocess/1/metrics.py": {TRITON},
    "model_repository/preprocess/1/checkpoint_files.py": {"huggingface_hub"},  # never while serving, as settings.py
    "server/": set(),
    "server/backends/": {"numpy", "onnxruntime", TRITON},
    "export/": {
        *("PIL", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "transformers"),
        *("checkpoint_files", "settings"),  # shared by those who load a checkpoint
        "bounds",  # of the items that padded attention has room for
    },
    "client/vlembed/": {"numpy", "tritonclient", "grpc"},  # grpc comes with tritonclient
    "client/vlembed/cli/": {"click", "numpy"},  # an extra as a whole, imported by the command alone
    "finetune/": {
        *("numpy", "safetensors", "torch", "transformers"),
        *("datasets", "matplotlib", "mteb", "peft", "pyarrow", "sentence_transformers"),
        *("checkpoint_files", "images", "preprocessing", "settings"),  # what is trained is what is served
    },
    # run in containers that have no torch; TensorRT is found by engines.py alone, under one of two names
    **{f"export/{name}.py": {"numpy"} for name in ("build_engines", "engines", "reference", "errors", "paths")},
    **{f"finetune/{name}.py": EVALUATION for name in ("evaluate", "in_process", "served", "tasks", "vectors")},
    "finetune/mteb_model.py": EVALUATION | {"mteb"},
    "demo/": {"PIL", "vlembed"},
    "demo/untrained.py": {"tokenizers", "torch", "transformers"},
    "demo/train.py": {"torch"},
    "benchmark/peers/": {"PIL", "numpy", "server", "tritonclient", "vlembed"},
    # of the peers' environments
    "benchmark/peers/encoder.py": {"PIL", "numpy", "sentence_transformers", "torch", "transformers"},
    **{f"benchmark/peers/serve_{name}.py": {name, "numpy", "uvicorn"} for name in PEERS},
    "benchmark/peers/checkpoint.py": {"demo", "safetensors", "tokenizers", "torch"},
    "benchmark/tune.py": {"google", "numpy", "server", "tritonclient", "vlembed"},
    "benchmark/gpu.py": {"PIL", "demo", "export", "numpy", "onnxruntime", "server", "torch", "transformers", "vlembed"},
    "benchmark/": {"PIL", "images", "numpy", "onnxruntime", "preprocessing", "server", "transformers", "vlembed"},
}
# Imported inside a function, by those who use that extra, or for type checkers alone.
LAZY = {
    "client/vlembed/": {"PIL", "typing_extensions", "faiss", "pymilvus", "pyarrow", "ray", "tqdm"},
    "benchmark/gpu.py": {"sentence_transformers"},
    "benchmark/plot.py": {"matplotlib"},  # of an environment of its own
}


def rule(rules: dict[str, set[str]], path: str) -> set[str]:
    """Return the entry of the longest prefix of a path."""
    prefixes = [prefix for prefix in rules if path.startswith(prefix)]
    return rules[max(prefixes, key=len)] if prefixes else set()


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Yield the top-level package of every absolute import, and whether importing the module passes it over."""
    lazy = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0], node in lazy


def own_names(path: str) -> set[str]:
    """Return what a file may call its own: the modules beside it and the package it is part of."""
    folder = (ROOT / path).parent
    return {sibling.stem for sibling in folder.glob("*.py")} | {path.split("/")[0], folder.name}


def forbidden(path: str, source: str) -> set[str]:
    allowed = rule(ALLOWED, path) | own_names(path) | set(sys.stdlib_module_names)
    return {
        name
        for name, is_lazy in imports(ast.parse(source))
        if name not in allowed and not (is_lazy and name in rule(LAZY, path))
    }


def python_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.splitlines() if not path.startswith("tests/")]


@pytest.mark.parametrize("path", python_files())
def test_import_table(path: str) -> None:
    assert rule(ALLOWED, path) or path.startswith("server/"), f"{path} is in no folder of the table"
    assert not forbidden(path, (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("client/vlembed/_client.py", "import torch", {"torch"}),
        ("client/vlembed/_client.py", "import numpy\nfrom PIL import Image", {"PIL"}),
        ("client/vlembed/_client.py", "def f():\n    from PIL import Image", set()),
        ("model_repository/preprocess/1/preprocessing.py", f"import {TRITON}\nimport images", {TRITON}),
        ("model_repository/preprocess/1/decode.py", "import torch\nfrom PIL import Image", {"torch"}),
        ("model_repository/pooling/1/model.py", "import torch.nn.functional", {"torch"}),
        ("server/launch.py", "from export.checkpoint import Checkpoint\nimport numpy", {"export", "numpy"}),
        ("finetune/training.py", "import vlembed\nfrom export.checkpoint import Checkpoint", {"export", "vlembed"}),
        ("finetune/served.py", "import vlembed", set()),
        ("export/validate.py", "from server import launch\nimport vlembed", {"server", "vlembed"}),
    ],
)
def test_the_table_catches_what_it_forbids(path: str, source: str, wrong: set[str]) -> None:
    assert forbidden(path, source) == wrong
