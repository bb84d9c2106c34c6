"""The CUDA variant: its graphs in float32 on a CPU, as they are written, and on a CUDA device."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.__main__ import export, export_towers, rounded
from export.attention import looped_attention
from export.checkpoint import Checkpoint, ExportError
from export.validate import Tower, reference_cases, runs_here, validate
from export.variants import BF16, FP32, VARIANTS, choose_variants
from tests.conftest import ARCHITECTURES

CUDA, CPU = VARIANTS["cuda"], VARIANTS["cpu"]
# CPUs have every operator of the CUDA graphs in float32 but packed attention.
IN_FLOAT32 = replace(
    CUDA,
    precision=FP32,
    provider=CPU.provider,
    attention=looped_attention,
)
LAYERS = {"tiny": (4, 4), "deep": (6, 6), "wide": (3, 3)}  # of the language tower and of the vision tower


@pytest.fixture(scope="module")
def cuda_repository(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the CUDA variant alone."""
    folder = tmp_path_factory.mktemp("cuda") / "repository"
    export(str(checkpoint.folder), folder, variants=["cuda"])
    return folder


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_against_transformers_in_float32(size: str, checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(size)
    model = checkpoint.load_model()
    cases = reference_cases(checkpoint, model)
    for tower in ("vision_encoder", "language_model"):
        (tmp_path / tower / "1").mkdir(parents=True)
    assert export_towers(tmp_path, checkpoint, model, cases, IN_FLOAT32) == {}
    report = validate(tmp_path, checkpoint, cases, IN_FLOAT32)  # the guards included
    assert min(report.values()) >= FP32.min_cosine
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "language_model/1/cuda.onnx").graph.node)
    num_layers = LAYERS[size][0]
    assert operators["RotaryEmbedding"] == 2 * num_layers
    assert operators["QuickGelu"] == num_layers
    deepstack = min(checkpoint.num_deepstack, num_layers - 1)
    assert operators["SkipSimplifiedLayerNormalization"] == 2 * num_layers
    assert operators["SimplifiedLayerNormalization"] == 2 * num_layers + 1, deepstack


SIZES = {"Range": (0, 1, 2), "Slice": (1, 2), "ConstantOfShape": (0,), "Expand": (1,), "Reshape": (1,)}


@pytest.mark.parametrize("tower", ["vision_encoder", "language_model"])
def test_no_kernel_reads_a_view_of_a_size(tower: str, cuda_repository: Path) -> None:
    graph = onnx.load(cuda_repository / tower / "1/cuda.onnx", load_external_data=False).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    views = {"Squeeze", "Unsqueeze", "Reshape", "Identity"}
    read = [
        (node.name, place)
        for node in graph.node
        for place in SIZES.get(node.op_type, ())
        if makers.get(node.input[place]) in views
    ]
    assert read == []


@pytest.mark.parametrize("tower", ["vision_encoder", "language_model"])
def test_graphs(tower: str, cuda_repository: Path) -> None:
    model = onnx.load(cuda_repository / tower / "1/cuda.onnx", load_external_data=False)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20), ("com.microsoft", 1)]
    for tensor in (*model.graph.input, *model.graph.output):
        assert tensor.type.tensor_type.elem_type != onnx.TensorProto.BFLOAT16  # which old containers cannot pass on
    nodes = [node for node in model.graph.node if node.op_type in ("PagedAttention", "PackedMultiHeadAttention")]
    assert len(nodes) == 4
    assert not {"Loop", "SequenceEmpty", "If"} & {node.op_type for node in model.graph.node}
    if tower == "language_model":
        caches = {(node.input[3], node.input[4]) for node in nodes}
        assert len(caches) == 1, "every layer has a cache of its own"
        assert len(set(*caches)) == 2, "keys and values share a cache"
    weights = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 4096}
    assert onnx.TensorProto.BFLOAT16 in weights
    for node in model.graph.node:
        if node.op_type.startswith("Skip"):  # what the kernels give in training only is not asked for
            assert list(node.output[1:3]) in ([], ["", ""])


def test_a_repository_of_cuda_alone(cuda_repository: Path, checkpoint: Checkpoint) -> None:
    info = json.loads((cuda_repository / "info/1/info.json").read_text())
    fingerprint = checkpoint.fingerprint({"precision": "bf16"})
    assert info["variants"] == {"cuda": {"precision": "bf16", "fingerprint": fingerprint}}
    assert not (cuda_repository / "language_model/1/model.onnx").exists()
    assert sorted(path.parent.parent.name for path in cuda_repository.glob("*/configs/cuda.pbtxt")) == [
        "info",
        "language_model",
        "vision_encoder",
    ]


def test_what_cannot_be_written() -> None:
    assert choose_variants(["cuda", "cpu"], ["bf16", "fp32"]) == choose_variants(["cpu", "cuda"]) == [CPU, CUDA]
    with pytest.raises(ExportError, match=r"no variant is written in fp32. There is cuda in bf16"):
        choose_variants(["cuda"], ["fp32"])
    with pytest.raises(ExportError, match=r"there is no variant tpu. Choose from cpu, cuda"):
        choose_variants(["tpu"])


def test_rounded_weights_leave_the_model_as_it_is() -> None:
    model = torch.nn.Linear(4, 4)
    model.register_buffer("angles", torch.zeros(4))
    half, same = rounded(model, torch.bfloat16), rounded(model, torch.float32)
    assert (half.weight.dtype, half.angles.dtype, model.weight.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert same.weight.data_ptr() == model.weight.data_ptr()


@pytest.mark.skipif(not runs_here(CUDA), reason="needs onnxruntime-gpu and a CUDA device")
@pytest.mark.gpu
def test_on_a_device(cuda_repository: Path, checkpoint: Checkpoint) -> None:
    cases = reference_cases(checkpoint, checkpoint.load_model())
    assert min(validate(cuda_repository, checkpoint, cases, CUDA).values()) >= BF16.min_cosine
    names = ("input_ids", "position_ids", "lengths", "image_embeds")
    tower = Tower(cuda_repository / "language_model/1/cuda.onnx", names, "pooled", CUDA.provider)
    request = {
        "input_ids": np.array([5, 6, 7, checkpoint.config.image_token_id]),
        "position_ids": np.zeros((4, 3), np.int32),
        "lengths": np.array([3, 1], np.int32),
        "image_embeds": np.zeros((1, checkpoint.image_embeds_size), np.float32),
    }
    first, second = (tower.run([request]) for _ in range(2))  # a memory pattern would be used the second time
    np.testing.assert_array_equal(first, second)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(runs_here(CUDA), reason="needs a machine without CUDA")
def test_a_graph_that_asks_for_cuda_is_not_run_on_the_cpu(repository: Path) -> None:
    graph = repository / "vision_encoder/1/model.onnx"
    with pytest.raises(ExportError, match=r"CUDAExecutionProvider is not available.* \./scripts/install --gpu"):
        Tower(graph, ("patches", "grid_thw"), "image_embeds", "CUDAExecutionProvider")
