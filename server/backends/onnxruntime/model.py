"""Triton glue of the embedded default: `backend: "onnxruntime"` served by the onnxruntime Python package.

The same config and graph as in the stock C++ backend: requests in, one run of the graph, responses out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils

from gpu_session import CUDA, NoCudaError, open_on_gpu
from ragged import Array, BatchError, Packing, Request
from validation import GraphTensor, find_problems

GRAPH_LEVELS = {  # optimization.graph.level, as the stock backend reads it
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {"0": onnxruntime.ExecutionMode.ORT_SEQUENTIAL, "1": onnxruntime.ExecutionMode.ORT_PARALLEL}
SWITCH = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
ARENAS = {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"}
PARAMETERS: dict[str, tuple[str, Callable[[str], Any]]] = {  # key in the config -> session option, its reader
    "intra_op_thread_count": ("intra_op_num_threads", int),
    "inter_op_thread_count": ("inter_op_num_threads", int),
    "execution_mode": ("execution_mode", EXECUTION_MODES.__getitem__),
    "enable_mem_arena": ("enable_cpu_mem_arena", SWITCH.__getitem__),
    "enable_mem_pattern": ("enable_mem_pattern", SWITCH.__getitem__),
}


class TritonPythonModel:
    """One instance of a model: one session with its own copy of the weights."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph and hold it against the config.

        Raises
        ------
        pb_utils.TritonModelException
            The graph is missing or contradicts the config, or the config asks for what is not there.
        """
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        if path.is_dir():  # a graph with its weights beside it
            path /= "model.onnx"
        if not path.exists():
            raise pb_utils.TritonModelException(f"{path} is missing. Run `python -m export` to make it.")
        open_session = open_on_gpu if args["model_instance_kind"] == "GPU" else onnxruntime.InferenceSession
        try:
            self.session = open_session(path, session_options(config), providers(args, config))
        except NoCudaError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        graph = _tensors(self.session.get_inputs()), _tensors(self.session.get_outputs())
        if problems := list(find_problems(config, *graph)):
            raise pb_utils.TritonModelException(
                f"config.pbtxt and {path.name} of '{args['model_name']}' disagree: {'; '.join(problems)}. "
                "Export both again, or correct the config."
            )
        self.packing = Packing.from_config(config)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the graph once for all sound requests; answer each."""
        inputs = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        outcomes = [self._refuse(tensors) for tensors in inputs]
        sound = [index for index, refusal in enumerate(outcomes) if refusal is None]
        for index, outcome in zip(sound, self._run([inputs[index] for index in sound]), strict=True):
            outcomes[index] = outcome
        return [_response(request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]

    def finalize(self) -> None:
        """Free the weights."""
        del self.session

    def _refuse(self, request: Request) -> Any:
        try:
            self.packing.check(request)
        except BatchError as error:
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        return None

    def _run(self, requests: Sequence[Request]) -> list[Any]:
        """Return the outputs, or the error, of each request."""
        if not requests:
            return []
        names = list(self.packing.output_dims)
        try:
            outputs = self.session.run(names, self.packing.pack(requests))
            parts = [self.packing.unpack(name, output, requests) for name, output in zip(names, outputs, strict=True)]
        except Exception as error:  # whatever ONNX Runtime raises: left alone, it would fail every request
            if len(requests) > 1:  # the stock backend fails the whole batch; here only the bad request has the error
                return [outcome for request in requests for outcome in self._run([request])]
            return [pb_utils.TritonError(f"onnxruntime: {error}", pb_utils.TritonError.INTERNAL)]
        return [dict(zip(names, tensors, strict=True)) for tensors in zip(*parts, strict=True)]


def session_options(config: dict[str, Any]) -> Any:
    """Read `parameters` and `optimization.graph` of a config, under the stock backend's names.

    Raises
    ------
    pb_utils.TritonModelException
        A value is not one that its key may have.
    """
    options = onnxruntime.SessionOptions()
    level = config["optimization"].get("graph", {}).get("level", 0)
    options.graph_optimization_level = GRAPH_LEVELS.get(level, GRAPH_LEVELS[0])
    for key, (option, read) in PARAMETERS.items():
        if key not in config["parameters"]:
            continue  # onnxruntime's own default: a thread per core
        value = config["parameters"][key]["string_value"]
        try:
            setattr(options, option, read(value))
        except (KeyError, ValueError) as error:
            raise pb_utils.TritonModelException(
                f"parameter {key} cannot be {value!r}. Correct config.pbtxt."
            ) from error
    return options


def providers(args: dict[str, str], config: dict[str, Any]) -> list[Any]:
    """Choose where the graph runs; Triton has already made CPU or GPU of KIND_AUTO."""
    cpu = "CPUExecutionProvider"
    if args["model_instance_kind"] != "GPU":
        return [cpu]
    options = {"device_id": args["model_instance_device_id"]}
    if "gpu_mem_limit" in config["parameters"]:
        options["gpu_mem_limit"] = config["parameters"]["gpu_mem_limit"]["string_value"]
    if "arena_extend_strategy" in config["parameters"]:
        options["arena_extend_strategy"] = ARENAS[config["parameters"]["arena_extend_strategy"]["string_value"]]
    return [(CUDA, options), cpu]


def _tensors(arguments: Sequence[Any]) -> dict[str, GraphTensor]:
    return {
        argument.name: GraphTensor(argument.type, tuple(dim if isinstance(dim, int) else -1 for dim in argument.shape))
        for argument in arguments
    }


def _response(request: Any, outcome: Any) -> Any:
    if not isinstance(outcome, dict):
        return pb_utils.InferenceResponse(error=outcome)
    outputs: dict[str, Array] = outcome
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, outputs[name]) for name in request.requested_output_names()]
    )
