"""The onnxruntime backend inside a real tritonserver, on small graphs made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from server.backends.onnxruntime.ragged import Array
from server.errors import ServerStartError
from server.process import TritonProcess

pytestmark = pytest.mark.triton

NUM_CLIENTS = 16
NUM_REQUESTS = 200
TABLE = [7.0, 1.0, 4.0, 2.0]  # what `lookup` knows; another index fails the run

# Large enough that batches form however slow the machine: the batcher waits for max_batch_size requests.
BATCHING = "dynamic_batching { max_queue_delay_microseconds: 100000 }"

TOTALS = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ] allow_ragged_batch: true } ]
output [
  { name: "doubled" data_type: TYPE_FP32 dims: [ -1, 2 ] },
  { name: "total" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "num_requests" data_type: TYPE_INT64 dims: [ 1 ] }
]
batch_input [
  { kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "offsets" data_type: TYPE_INT32 source_input: "x" }
]
batch_output [ { target_name: "doubled" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" } ]
"""
LOOKUP = """
input [ { name: "index" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true } ]
output [ { name: "value" data_type: TYPE_FP32 dims: [ -1 ] } ]
batch_output [ { target_name: "value" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "index" } ]
"""
PLAIN = """
input [ { name: "a" data_type: TYPE_INT32 dims: [ 3 ] }, { name: "b" data_type: TYPE_INT32 dims: [ 3 ] } ]
output [ { name: "sum" data_type: TYPE_INT32 dims: [ 3 ] } ]
"""
Value = tuple[str, int, list[str | int]]


def write_model(
    repository: Path, name: str, config: str, nodes: Sequence[onnx.NodeProto], inputs: list[Value],
    outputs: list[Value], *, max_batch_size: int = 8, constants: Sequence[onnx.TensorProto] = (),
) -> None:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        initializer=constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    (repository / name / "1").mkdir(parents=True)
    onnx.save(model, str(repository / name / "1/model.onnx"))
    header = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch_size}\n'
    (repository / name / "config.pbtxt").write_text(header + config)


def write_totals(repository: Path, name: str = "totals", config: str = TOTALS + BATCHING) -> None:
    """Double every element, and sum those of each request by its offsets."""
    constant = {
        "zero": helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        "one": helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        "end": helper.make_tensor("end", TensorProto.INT64, [1], [2**62]),
        "minus_one": helper.make_tensor("minus_one", TensorProto.INT64, [1], [-1]),
        "pair": helper.make_tensor("pair", TensorProto.INT64, [2], [-1, 2]),
        "pads": helper.make_tensor("pads", TensorProto.INT64, [2], [1, 0]),
        "axis": helper.make_tensor("axis", TensorProto.INT64, [], [0]),
    }
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("Reshape", ["twice", "pair"], ["doubled"]),
        helper.make_node("CumSum", ["x", "axis"], ["running"]),
        helper.make_node("Pad", ["running", "pads"], ["padded"]),
        helper.make_node("Gather", ["padded", "offsets"], ["bounds"]),
        helper.make_node("Slice", ["bounds", "one", "end"], ["upper"]),
        helper.make_node("Slice", ["bounds", "zero", "minus_one"], ["lower"]),
        helper.make_node("Sub", ["upper", "lower"], ["totals"]),
        helper.make_node("Unsqueeze", ["totals", "one"], ["total"]),
        helper.make_node("Shape", ["totals"], ["size"]),
        helper.make_node("Shape", ["total"], ["batch_shape"]),
        helper.make_node("Expand", ["size", "batch_shape"], ["num_requests"]),
    ]
    inputs: list[Value] = [("x", TensorProto.FLOAT, ["elements"]), ("offsets", TensorProto.INT32, ["bounds"])]
    outputs: list[Value] = [
        ("doubled", TensorProto.FLOAT, ["rows", 2]),
        ("total", TensorProto.FLOAT, ["requests", 1]),
        ("num_requests", TensorProto.INT64, ["requests", 1]),
    ]
    write_model(repository, name, config, nodes, inputs, outputs, constants=list(constant.values()))


def write_lookup(repository: Path, name: str = "lookup", config: str = LOOKUP + BATCHING, **options: Any) -> None:
    """Replace each index by its entry in TABLE."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [len(TABLE)], TABLE)
    nodes = [helper.make_node("Gather", ["table", "index"], ["value"])]
    inputs: list[Value] = [("index", TensorProto.INT64, ["n"])]
    outputs: list[Value] = [("value", TensorProto.FLOAT, ["n"])]
    write_model(repository, name, config, nodes, inputs, outputs, constants=[table], **options)


def write_plain(repository: Path, name: str = "plain", config: str = PLAIN, **options: Any) -> None:
    """Add two vectors of three."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"])]
    batch: list[str | int] = ["batch", 3] if options.get("max_batch_size", 8) else [3]
    inputs: list[Value] = [("a", TensorProto.INT32, batch), ("b", TensorProto.INT32, batch)]
    write_model(repository, name, config, nodes, inputs, [("sum", TensorProto.INT32, batch)], **options)


def parameters(**values: str) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items()
    )


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """Serve the graphs that are in order."""
    repository = tmp_path_factory.mktemp("shim")
    write_totals(repository)
    write_lookup(repository)
    write_plain(repository)
    write_plain(repository, "unbatched", max_batch_size=0)
    every = parameters(
        inter_op_thread_count="2", execution_mode="1", enable_mem_arena="false", enable_mem_pattern="false"
    )
    one = "instance_group [ { count: 1 kind: KIND_CPU } ]\noptimization { graph { level: 2 } }\n"
    write_plain(repository, "threads_1", PLAIN + one + every + parameters(intra_op_thread_count="1"))
    write_plain(repository, "threads_6", PLAIN + one + every + parameters(intra_op_thread_count="6"))
    with TritonProcess(repository) as server:
        yield server


@pytest.fixture(scope="module")
def infer(shim: TritonProcess) -> Iterator[Callable[..., dict[str, Array]]]:
    """Return a function that sends arrays to a model and gives back its outputs."""
    with InferenceServerClient(shim.grpc_url.removeprefix("grpc://")) as client:

        def send(model: str, **arrays: Array) -> dict[str, Array]:
            inputs = []
            for name, array in arrays.items():
                inputs.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
                inputs[-1].set_data_from_numpy(array)
            result = client.infer(model, inputs)
            return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

        yield send


def test_concurrent_requests_of_odd_sizes(infer: Callable[..., dict[str, Array]]) -> None:
    random = np.random.default_rng(0)
    arrays = [
        random.integers(-50, 50, (1, size, 2)).astype(np.float32)  # integers: sums are exact
        for size in random.integers(1, 70, NUM_REQUESTS)
    ]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(pool.map(lambda x: infer("totals", x=x), arrays))
    for answer, x in zip(answers, arrays, strict=True):
        assert_array_equal(answer["doubled"], 2 * x)
        assert_array_equal(answer["total"], [[x.sum()]])
    assert max(int(answer["num_requests"].item()) for answer in answers) > 1  # they were batched


def test_one_failing_request_harms_no_other(infer: Callable[..., dict[str, Array]]) -> None:
    indices = [np.arange(n % 4 + 1)[None] for n in range(64)]
    for bad in range(5, 64, 16):
        indices[bad] = np.array([[0, len(TABLE)]])

    def look_up(index: Array) -> Array | str:
        try:
            return infer("lookup", index=index)["value"]
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for index, answer in zip(indices, pool.map(look_up, indices), strict=True):
            if index.max() < len(TABLE):
                assert_array_equal(answer, np.take(TABLE, index))
            else:
                assert isinstance(answer, str)
                assert answer.startswith("StatusCode.INTERNAL onnxruntime: ")
                assert "out of data bounds" in answer


def test_empty_ragged_input_is_refused_and_harms_no_other(infer: Callable[..., dict[str, Array]]) -> None:
    arrays = [np.full((1, size, 2), size, np.float32) for size in [3, 0, 5, 0, 1, 2, 0, 4]]

    def total(x: Array) -> float | str:
        try:
            return float(infer("totals", x=x)["total"].item())
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"

    with ThreadPoolExecutor(len(arrays)) as pool:
        answers = list(pool.map(total, arrays))
    refusal = "StatusCode.INVALID_ARGUMENT input 'x' has shape [1, 0, 2]: a ragged input needs at least one element."
    assert answers == [18, refusal, 50, refusal, 2, 8, refusal, 32]


def test_plain_batches_and_none(infer: Callable[..., dict[str, Array]]) -> None:
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert_array_equal(infer("plain", a=a, b=10 * a)["sum"], 11 * a)
    assert_array_equal(infer("unbatched", a=a[1], b=a[0])["sum"], a.sum(0))


def test_threads_are_as_many_as_asked(shim: TritonProcess, infer: Callable[..., dict[str, Array]]) -> None:
    def num_threads(model: str) -> int:
        a = np.ones((1, 3), np.int32)
        assert_array_equal(infer(model, a=a, b=a)["sum"], 2 * a)
        (process,) = (
            path.parent
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if f"{shim.repository}/{model}/".encode() in path.read_bytes()
        )
        return len(list((process / "task").iterdir()))

    assert num_threads("threads_6") - num_threads("threads_1") == 5


def broken(config: str, old: str, new: str) -> str:
    assert old in config
    return config.replace(old, new)


BROKEN: dict[str, tuple[Callable[..., None], str, str]] = {  # model -> writer, config, what the message must say
    "wrong_input_name": (
        write_lookup, LOOKUP.replace('"index"', '"indices"'),
        "input 'indices' is not in the graph, which has ['index']",
    ),
    "wrong_input_type": (
        write_lookup, broken(LOOKUP, "TYPE_INT64", "TYPE_INT32"),
        "input 'index' is TYPE_INT32 in the config, tensor(int64) in the graph",
    ),
    "wrong_input_dims": (
        write_plain, PLAIN.replace("dims: [ 3 ]", "dims: [ 4 ]"),
        "input 'a' has dims [-1, 4] in the config, [-1, 3] in the graph",
    ),
    "variable_input_dims": (
        write_plain, PLAIN.replace("dims: [ 3 ]", "dims: [ -1 ]"),
        "input 'a' has dims [-1, -1] in the config, [-1, 3] in the graph",
    ),
    "ragged_needs_rank_one": (
        write_plain, PLAIN.replace("dims: [ 3 ] }", "dims: [ 3 ] allow_ragged_batch: true }", 2),
        "ragged input 'a' must have dims [-1] in the graph, not [-1, 3]",
    ),
    "some_ragged": (
        write_plain, PLAIN.replace("dims: [ 3 ] }", "dims: [ 3 ] allow_ragged_batch: true }", 1),
        "only ['a'] are ragged: all inputs must be, or none",
    ),
    "optional_ragged": (
        write_lookup, broken(LOOKUP, "allow_ragged_batch: true", "allow_ragged_batch: true optional: true"),
        "input 'index' is optional or reshaped, which this backend does not serve",
    ),
    "reshaped": (
        write_lookup, broken(LOOKUP, "allow_ragged_batch: true", "reshape { shape: [ -1 ] }"),
        "input 'index' is optional or reshaped, which this backend does not serve",
    ),
    "too_few_inputs": (
        write_totals, broken(TOTALS, 'target_name: "offsets"', 'target_name: "starts"'),
        "input 'starts' is not in the graph, which has ['offsets', 'x']",
    ),
    "input_count": (
        write_plain, broken(PLAIN, ', { name: "b" data_type: TYPE_INT32 dims: [ 3 ] }', ""),
        "the graph has 2 inputs ['a', 'b'], the config has 1 inputs and 0 batch_inputs ['a']",
    ),
    "batch_input_type": (
        write_totals, broken(TOTALS, "TYPE_INT32", "TYPE_FP32"),
        "input 'offsets' is TYPE_FP32 in the config, tensor(int32) in the graph",
    ),
    "wrong_output_name": (
        write_plain, broken(PLAIN, '"sum"', '"total"'), "output 'total' is not in the graph, which has ['sum']",
    ),
    "wrong_output_type": (
        write_lookup, broken(LOOKUP, "TYPE_FP32", "TYPE_FP16"),
        "output 'value' is TYPE_FP16 in the config, tensor(float) in the graph",
    ),
    "wrong_output_dims": (
        write_totals, broken(TOTALS, "FP32 dims: [ 1 ]", "FP32 dims: [ 2 ]"),
        "output 'total' has dims [-1, 2] in the config, [-1, 1] in the graph",
    ),
    "scattered_dims": (
        write_totals, broken(TOTALS, "[ -1, 2 ] },", "[ -1, 4 ] },"),
        "scattered output 'doubled' has dims [-1, 4] in the config, [-1, 2] in the graph",
    ),
    "scattered_rank": (
        write_lookup, broken(LOOKUP, "TYPE_FP32 dims: [ -1 ]", "TYPE_FP32 dims: [ -1, -1 ]"),
        "scattered output 'value' has variable dims beyond those of 'index'",
    ),
    "execution_mode": (write_lookup, LOOKUP + parameters(execution_mode="2"), "parameter execution_mode cannot be '2'"),
    "thread_count": (
        write_lookup, LOOKUP + parameters(intra_op_thread_count="many"),
        "parameter intra_op_thread_count cannot be 'many'",
    ),
    "mem_arena": (
        write_lookup, LOOKUP + parameters(enable_mem_arena="maybe"), "parameter enable_mem_arena cannot be 'maybe'"
    ),
    "gpu": (
        write_lookup, LOOKUP + "instance_group [ { kind: KIND_GPU } ]", "has kind KIND_GPU but no GPUs are available"
    ),
    "no_graph": (write_lookup, LOOKUP + 'default_model_filename: "other.onnx"', "1/other.onnx is missing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Try to serve all broken models at once; return the message of each."""
    repository = tmp_path_factory.mktemp("broken")
    for name, (write, config, _) in BROKEN.items():
        write(repository, name, config)
    with pytest.raises(ServerStartError) as caught, TritonProcess(repository):
        pass
    lines = str(caught.value).splitlines()[1:]
    return dict(line.split(": ", maxsplit=1) for line in lines)


@pytest.mark.parametrize("name", BROKEN)
def test_model_is_refused_at_load(failures: dict[str, str], name: str) -> None:
    assert BROKEN[name][2] in failures[name]
