"""The hand-written configs, checked without a server: ensemble wiring, and each tower against its exported graph."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export.checkpoint import Checkpoint
from export.repository import TEMPLATE
from export.variants import VARIANTS
from preprocessing import Bounds
from tests.conftest import ARCHITECTURES

MODELS = ["embed", "embed_text", "info", "language_model", "pooling", "preprocess", "vision_encoder"]
ENSEMBLES = ["embed", "embed_text"]
TOWERS = ["vision_encoder", "language_model"]
STEPS = ["preprocess", "vision_encoder", "language_model", "pooling"]
ONNX_TYPES = {
    triton.TYPE_UINT8: onnx.TensorProto.UINT8,
    triton.TYPE_INT32: onnx.TensorProto.INT32,
    triton.TYPE_INT64: onnx.TensorProto.INT64,
    triton.TYPE_FP32: onnx.TensorProto.FLOAT,
}


@cache
def read(model: str, repository: Path = TEMPLATE, file: str = "config.pbtxt") -> triton.ModelConfig:
    return text_format.Parse((repository / model / file).read_text(), triton.ModelConfig())


def tensors(model: str, side: str) -> dict[str, triton.ModelInput | triton.ModelOutput]:
    return {tensor.name: tensor for tensor in getattr(read(model), side)}


def dims(model: str, tensor: triton.ModelInput | triton.ModelOutput) -> list[int]:
    """Return the dims on the wire: a batched model has one more in front."""
    return ([-1] if read(model).max_batch_size else []) + list(tensor.dims)


def fit(ours: list[int], theirs: list[int]) -> bool:
    """Tell whether dims agree, -1 standing for any size."""
    return len(ours) == len(theirs) and all(
        -1 in pair or len(set(pair)) == 1 for pair in zip(ours, theirs, strict=True)
    )


def test_every_model_is_named_as_its_folder() -> None:
    assert sorted(path.name for path in TEMPLATE.iterdir()) == MODELS
    assert [read(model).name for model in MODELS] == MODELS


@pytest.mark.parametrize("model", ENSEMBLES)
def test_ensemble_wiring(model: str) -> None:
    known = {name: (model, tensor) for name, tensor in tensors(model, "input").items()}
    for step in read(model).ensemble_scheduling.step:
        inputs, outputs = tensors(step.model_name, "input"), tensors(step.model_name, "output")
        assert {name for name, tensor in inputs.items() if not tensor.optional} <= set(step.input_map)
        for key, value in step.input_map.items():
            assert key == value  # a tensor has one name from end to end
            maker, tensor = known[value]
            assert tensor.data_type == inputs[key].data_type
            assert fit(dims(maker, tensor), dims(step.model_name, inputs[key])), (step.model_name, key)
            if maker == model and tensor.optional:
                assert inputs[key].optional
        for key, value in step.output_map.items():
            assert key == value
            known[value] = (step.model_name, outputs[key])
    for name, output in tensors(model, "output").items():
        maker, tensor = known[name]
        assert tensor.data_type == output.data_type
        assert fit(dims(maker, tensor), list(output.dims))


def test_the_public_contract() -> None:
    def wire(model: str, side: str) -> dict[str, tuple[str, list[int], bool]]:
        return {
            name: (triton.DataType.Name(tensor.data_type), list(tensor.dims), getattr(tensor, "optional", False))
            for name, tensor in tensors(model, side).items()
        }

    text_inputs = {
        "text": ("TYPE_STRING", [-1], False),
        "instruction": ("TYPE_STRING", [-1], True),
        "dimensions": ("TYPE_INT32", [1], True),
        "truncate": ("TYPE_BOOL", [1], True),
    }
    image_inputs = {
        "text": ("TYPE_STRING", [-1], True),
        "image": ("TYPE_STRING", [-1], True),
        "max_pixels": ("TYPE_INT32", [1], True),
    }
    outputs = {
        "embedding": ("TYPE_FP32", [-1, -1], False),
        "text_tokens": ("TYPE_INT32", [-1], False),
        "image_tokens": ("TYPE_INT32", [-1], False),
    }
    assert wire("embed_text", "input") == text_inputs
    assert wire("embed", "input") == text_inputs | image_inputs
    assert wire("embed", "output") == wire("embed_text", "output") == outputs
    assert wire("info", "output") == {"info": ("TYPE_STRING", [1], False)}


@pytest.mark.parametrize("tower", TOWERS)
def test_ragged_rules_of_the_stock_backend(tower: str) -> None:
    config = read(tower)
    inputs = tensors(tower, "input")
    assert config.max_batch_size > 0
    assert all(tensor.allow_ragged_batch and not tensor.optional for tensor in inputs.values())
    for batch_input in config.batch_input:
        assert batch_input.data_type == triton.TYPE_INT32
        assert len(batch_input.target_name) == 1 and batch_input.source_input[0] in inputs
    counted = {source for batch_input in config.batch_input for source in batch_input.source_input}
    assert counted == set(inputs)  # the guard of packing.py needs the offsets of every input
    scattered = {name for batch_output in config.batch_output for name in batch_output.target_name}
    assert scattered == set(tensors(tower, "output"))
    for batch_output in config.batch_output:
        assert batch_output.source_input[0] in inputs


def test_the_largest_batch_stays_inside_int32() -> None:
    bounds = Bounds()
    for tower, name, rows in [
        ("vision_encoder", "patches", bounds.max_pack_image_tokens),
        ("language_model", "image_embeds", bounds.max_pack_image_tokens),
        ("language_model", "input_ids", bounds.max_pack_tokens),
    ]:
        row_size = math.prod(size for size in tensors(tower, "input")[name].dims if size > 0)
        assert read(tower).max_batch_size * rows * row_size < 2**31

    # CUDA kernels count the numbers of a tensor with 32 bits: tokens by the 2B's intermediate size, patches likewise
    batches = {tower: read(tower, file="configs/cuda.pbtxt").max_batch_size for tower in TOWERS}
    assert batches["language_model"] * bounds.max_pack_tokens * 6144 < 2**31
    assert batches["vision_encoder"] * bounds.max_pack_image_tokens * 4 * 4096 < 2**31


@pytest.mark.parametrize("file", ["preprocess/config.pbtxt", "info/config.pbtxt", "info/configs/cuda.pbtxt"])
def test_bounds_are_the_same_everywhere(file: str) -> None:
    model, config = file.split("/", 1)
    written = {name: value.string_value for name, value in read(model, file=config).parameters.items()}
    written.pop("variant", None)
    assert {name: int(value) for name, value in written.items()} == vars(Bounds())


@pytest.mark.parametrize("model", ["info", *TOWERS])
def test_a_variant_differs_in_what_it_must(model: str) -> None:
    ours, default = read(model, file="configs/cuda.pbtxt"), read(model)
    if model == "info":
        assert ours.parameters["variant"].string_value == "cuda"
    else:
        assert ours.default_model_filename == VARIANTS["cuda"].graph
        assert [group.kind for group in ours.instance_group] == [triton.ModelInstanceGroup.KIND_GPU]
        assert ours.parameters["enable_mem_pattern"].string_value == "0"
    ours, default = copy.deepcopy(ours), copy.deepcopy(default)
    for config in (ours, default):
        for field in ("default_model_filename", "instance_group", "max_batch_size"):
            config.ClearField(field)
        for name in ("variant", "enable_mem_pattern", "arena_extend_strategy"):
            config.parameters.pop(name, None)
    assert ours == default


@pytest.mark.parametrize("size", ARCHITECTURES)
@pytest.mark.parametrize("tower", TOWERS)
def test_towers_against_their_graphs(
    tower: str, size: str, checkpoint_of: Callable[[str], Checkpoint], repository_of: Callable[[str], Path]
) -> None:
    repository = repository_of(size)
    config = read(tower, repository)
    model = onnx.load(repository / tower / "1/model.onnx", load_external_data=False)
    assert model.ir_version <= 10  # of ONNX Runtime 1.19, the oldest stock backend that is to load it
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 20, "com.microsoft": 1}
    graph = model.graph
    expected = {tensor.name: ONNX_TYPES[tensor.data_type] for tensor in config.input}
    for batch_input in config.batch_input:
        expected[batch_input.target_name[0]] = ONNX_TYPES[batch_input.data_type]
    assert {tensor.name: tensor.type.tensor_type.elem_type for tensor in graph.input} == expected
    for tensor in graph.input:  # packed: rank 1 of any length
        (dim,) = tensor.type.tensor_type.shape.dim
        assert dim.dim_param and not dim.dim_value
    (output,), (config_output,) = graph.output, config.output
    assert (output.name, output.type.tensor_type.elem_type) == (config_output.name, onnx.TensorProto.FLOAT)
    shape = [dim.dim_value or -1 for dim in output.type.tensor_type.shape.dim]
    assert shape == list(config_output.dims)  # the server does not check a scattered output: this does
    checkpoint = checkpoint_of(size)
    assert shape[1] == (checkpoint.image_embeds_size if tower == "vision_encoder" else checkpoint.hidden_size)


@pytest.mark.parametrize("model", MODELS)
def test_house_style(model: str) -> None:
    lines = (TEMPLATE / model / "config.pbtxt").read_text().splitlines()
    assert lines[0].startswith(f"# {model}: ")
    for line in lines:
        if "data_type:" in line and "dims:" in line:
            assert "#" in line, f"a shape comment is missing: {line}"
