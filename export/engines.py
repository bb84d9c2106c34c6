"""TensorRT engines: built from a graph, and run.

The only module that knows TensorRT: `tensorrt`, or else `tensorrt_rtx`, which builds for cards that are not there.
Memory of the card is asked of NVIDIA's driver itself, so that nothing else need be installed.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .errors import ExportError
from .reference import Array, Request, lay_out

LIBRARIES = ("tensorrt", "tensorrt_rtx")
MIN_VERSION = 11  # strongly typed throughout, with Attention in its parser
ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
Profile = Mapping[str, tuple[int, int, int]]  # elements of an input: the fewest, as usual, the most


def load_library() -> ModuleType:
    """Return TensorRT."""
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ExportError(
        "this Python has neither of the packages tensorrt and tensorrt_rtx. In the container that shall serve, "
        "`pip install tensorrt` of the same version as the server's; to build without a GPU, ./scripts/install --dev."
    )


def check_target(compute_capability: str | None) -> None:
    """Refuse a card that this library does not build for; None is the card at hand."""
    library = load_library()
    if library.__name__ == "tensorrt" and int(library.__version__.split(".")[0]) < MIN_VERSION:
        raise ExportError(
            f"this is TensorRT {library.__version__}, and the graphs need {MIN_VERSION}, which NVIDIA's containers "
            "have since 26.06."
        )
    known = getattr(getattr(library, "ComputeCapability", None), "__members__", {})
    if compute_capability is None and not has_card():
        raise ExportError("there is no NVIDIA GPU here. Build where it is, or for another with --compute-capability.")
    if compute_capability is not None and compute_capability not in known:
        offered = ", ".join(sorted(name for name in known if name.startswith("SM"))) or "the card at hand"
        raise ExportError(f"{library.__name__} does not build for {compute_capability!r}; it builds for {offered}.")


def build(
    graph: Path,
    profile: Profile,
    *,
    compute_capability: str | None = None,
    timing_cache: Path | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> bytes:
    """Build the engine of a strongly typed graph whose inputs are all of rank 1.

    Parameters
    ----------
    graph
        ONNX file.
    profile
        Sizes of every input.
    compute_capability
        SM80, SM89, ... of a card that need not be here; by default, build for the card at hand.
    timing_cache
        File with what was measured before; written anew.
    say
        Takes lines about the progress.

    Raises
    ------
    ExportError
        TensorRT refuses the graph, or has no kernel for a part of it.
    """
    library = load_library()
    logger = _logger(library)
    builder = library.Builder(logger)
    network = builder.create_network(0)  # strongly typed: TensorRT 11 knows nothing else
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        refused = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise ExportError(f"TensorRT's parser refuses {graph.name}: {refused}")
    say(f"{graph.name}: parsed, {network.num_layers} layers")
    sizes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes.set_shape(tensor.name, *((size,) for size in profile[tensor.name]))
    config = builder.create_builder_config()
    config.add_optimization_profile(sizes)
    config.clear_flag(library.BuilderFlag.TF32)  # float32 is asked for as such
    if compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.ComputeCapability.__members__[compute_capability], 0)
    if library.__name__ == "tensorrt_rtx":
        timing_cache = None  # it measures nothing
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT does not build {graph.name}: {logger.last_error}")
    if timing_cache is not None:
        timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    memory = f", {logger.activations / 2**20:,.0f} MiB to compute in" if logger.activations else ""
    say(f"{graph.name}: built, {plan.nbytes / 2**20:,.0f} MiB{memory}")
    return bytes(plan)


def _logger(library: ModuleType) -> Any:
    """Return a logger that keeps what is wanted of TensorRT's many lines."""

    class Logger(library.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.last_error = "no reason given"
            self.activations = 0  # bytes

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.last_error = message
            elif found := ACTIVATIONS.search(message):
                self.activations = int(found[1])

    return Logger()


def has_card() -> bool:
    """Tell whether NVIDIA's driver has a GPU here."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


class EngineTower:
    """An engine of a tower on the card at hand, which takes requests as the server would batch them."""

    def __init__(self, plan: bytes) -> None:
        self._device = _Device()
        library = load_library()
        self._runtime = library.Runtime(_logger(library))  # to be kept as long as the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ExportError("TensorRT does not load the engine that it built: is the card short of memory?")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        (self._output,) = (name for name in names if self._engine.get_tensor_mode(name) == library.TensorIOMode.OUTPUT)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ExportError("the card has too little memory to run the engine. Lower max_batch_size in its config.")

    def run(self, requests: list[Request]) -> Array:
        """Run one dynamic batch, the requests laid end to end."""
        context = self._context
        buffers = []
        try:
            for name, values in lay_out(requests).items():
                buffers.append(self._device.allocate(values.nbytes))
                self._device.write(buffers[-1], values)
                if not context.set_input_shape(name, values.shape):
                    raise ExportError(f"{values.size} elements of {name} are outside the engine's profile.")
                context.set_tensor_address(name, buffers[-1])
            rows = np.empty(tuple(context.get_tensor_shape(self._output)), np.float32)
            buffers.append(self._device.allocate(rows.nbytes))
            context.set_tensor_address(self._output, buffers[-1])
            if not context.execute_async_v3(0):
                raise ExportError("TensorRT does not run the engine.")
            self._device.read(buffers[-1], rows)
        finally:
            for buffer in buffers:
                self._device.free(buffer)
        return rows


class _Device:
    """Memory of the first card, by NVIDIA's driver."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def allocate(self, size_bytes: int) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, values: Array) -> None:
        values = np.ascontiguousarray(values)
        size = ctypes.c_size_t(values.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(values.ctypes.data), size)

    def read(self, address: int, values: Array) -> None:
        """Wait for what runs on the card, and copy."""
        self._call("cuCtxSynchronize")
        size = ctypes.c_size_t(values.nbytes)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(values.ctypes.data), ctypes.c_uint64(address), size)

    def _call(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._driver, function)(*arguments):
            raise ExportError(f"NVIDIA's driver answers {function} with CUDA error {status}.")
