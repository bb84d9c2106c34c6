"""Linear layers in 8-bit integers: weights scaled by output channel, activations by token.

A token's scale is its own largest activation, so that no vector depends on its neighbours. The products are ONNX
Runtime's of uint8 and int8, which CPUs with AVX512-VNNI or AMX compute several times faster than those of float32.

Activations have outliers in a few channels, which leave the others few steps. Where what comes before a layer can be
scaled by channel, part of each channel's size is moved into the weights, as SmoothQuant does; the product stays the
same.

Letters: T tokens or patches, I input channels, O output channels.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from .checkpoint import DisagreementError
from .operators import symbolic
from .vision_encoder import PatchEmbedding

Scales = dict[nn.Module, torch.Tensor]

LARGEST = 127  # of activations, on both sides of 128
SMALLEST_SCALE = 1e-30  # of a token without activations
EXACT_SUM = 64 * 255 * 127  # of the largest products
KEPT_AT_A_TIME = 16  # one layer of so many
INTEGER_PRODUCT = "com.microsoft::MatMulIntegerToFloat"


class QuantizedLinear(nn.Module):
    """`torch.nn.Linear` in integers."""

    weight: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear, largest: int) -> None:
        super().__init__()
        weight, scales = quantize_rows(linear.weight.detach(), largest)
        self.register_buffer("weight", weight.T.contiguous(), persistent=False)  # int8 (I, O)
        self.register_buffer("scales", scales, persistent=False)  # float32 (O,)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (T, I) times the weights, (T, O)."""
        if torch.compiler.is_exporting():
            scales = row_scales(x, LARGEST)
            zeros = torch.full_like(scales, LARGEST + 1, dtype=torch.uint8)
            rows = symbolic("QuantizeLinear", [x, scales, zeros], {"axis": 0}, x.shape, torch.uint8)
            product = integer_product(rows, self.weight, self.scales, zero=LARGEST + 1)
        else:
            rows, scales = quantize_rows(x, LARGEST)
            product = (rows.float() @ self.weight.float()) * self.scales
        product = product * scales[:, None]
        return product if self.bias is None else product + self.bias


class QuantizedPatchEmbedding(nn.Module):
    """`PatchEmbedding` with integer weights; pixels are integers already."""

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor

    def __init__(self, embedding: PatchEmbedding, largest: int) -> None:
        super().__init__()
        weight, scales = quantize_rows(embedding.weight.detach(), largest)
        bias = embedding.bias.detach() - weight.sum(1) * scales  # pixels come as 0 ... 255 instead of -1 ... 1
        self.register_buffer("weight", weight.T.contiguous(), persistent=False)  # int8 (1536, E)
        self.register_buffer("scales", scales / 127.5, persistent=False)  # float32 (E,)
        self.register_buffer("bias", bias, persistent=False)  # float32 (E,)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 patches (P, 1536) as (P, E)."""
        if torch.compiler.is_exporting():
            return integer_product(pixels, self.weight, self.scales, zero=0) + self.bias
        return (pixels.float() @ self.weight.float()) * self.scales + self.bias


class ExactProducts(nn.Module):
    """Tells whether the CPU adds products of uint8 and int8 exactly.

    Without VNNI, x86 adds two of them in 16 bits, and the largest do not fit. Vectors would be wrong without a word.
    """

    def forward(self) -> torch.Tensor:
        """Return bool (1, 1)."""
        if not torch.compiler.is_exporting():
            return torch.ones(1, 1, dtype=torch.bool)
        largest = torch.full((1, 64), 255, dtype=torch.uint8), torch.full((64, 1), 127, dtype=torch.int8)
        return integer_product(*largest, torch.ones(1), zero=0) == float(EXACT_SUM)


def integer_product(rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, zero: int) -> torch.Tensor:
    """Trace (rows - zero) @ weight * scales, of uint8 (T, I), int8 (I, O) and float32 (O,)."""
    inputs = [rows, weight, torch.tensor(1.0), scales, torch.tensor(zero, dtype=torch.uint8)]
    return symbolic(INTEGER_PRODUCT, inputs, {}, (rows.shape[0], weight.shape[1]), torch.float32)


def row_scales(x: torch.Tensor, largest: int) -> torch.Tensor:
    """Return what divides each row of x (T, I) to -largest ... largest, (T,)."""
    return x.abs().amax(1).clamp(min=SMALLEST_SCALE) / largest


def quantize_rows(x: torch.Tensor, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x (T, I) in int8 and the scales of its rows (T,)."""
    scales = row_scales(x, largest)
    return (x / scales[:, None]).round().to(torch.int8), scales


@cache
def largest_weight() -> int:
    """Return the largest integer weight whose products this CPU adds exactly: 127, or 63 on CPUs without VNNI."""
    product = _product("MatMulInteger", np.full((64, 32), 127, np.int8))(np.full((32, 64), 255, np.uint8))
    return 127 if (product == EXACT_SUM).all() else 63


def integer_speed() -> float:
    """Return how many times as fast as in float32 this CPU multiplies integers: 256 x 2,048 by 2,048 x 6,144."""
    seconds = []
    for operator, weight_type, rows_type in (("MatMul", np.float32, np.float32), ("MatMulInteger", np.int8, np.uint8)):
        product, rows = _product(operator, np.ones((2048, 6144), weight_type)), np.ones((256, 2048), rows_type)
        product(rows)  # the first is slower
        seconds.append(min(timeit.repeat(partial(product, rows), number=1, repeat=5)))
    return seconds[0] / seconds[1]


def _product(operator: str, weight: npt.NDArray[Any]) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Return a function that multiplies rows by a weight in ONNX Runtime."""
    types = {"MatMul": ("FLOAT", "FLOAT"), "MatMulInteger": ("UINT8", "INT32")}[operator]
    rows, product = (
        onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), ["M", "N"])
        for name, kind in zip(("rows", "product"), types, strict=True)
    )
    node = onnx.helper.make_node(operator, ["rows", "weight"], ["product"])
    graph = onnx.helper.make_graph(
        [node], "product", [rows], [product], [onnx.numpy_helper.from_array(weight, "weight")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda array: np.asarray(session.run(None, {"rows": array})[0])


def quantize_within(
    build: Callable[[], Any],
    observe: Callable[[Any], Any],
    check: Callable[[Any], None],
    say: Callable[[str], None],
) -> Any:
    """Quantise a tower, and leave the layers that rounding harms most in float32 until it is near enough.

    Parameters
    ----------
    build
        Makes the tower in float32.
    observe
        Runs a tower on examples.
    check
        Raises DisagreementError where a tower is too far from the reference.
    say
        Tells the user what is done.

    Raises
    ------
    DisagreementError
        Half of the layers in float32 are not enough.
    """
    keep: list[str] = []
    while True:
        tower = build()
        quantize(tower, partial(observe, tower), largest_weight(), keep)
        try:
            check(tower)
            return tower
        except DisagreementError as error:
            worst = worst_first(tower, partial(observe, tower))
            if len(keep) >= len(worst):
                raise
            keep += worst[: max(1, (len(keep) + len(worst)) // KEPT_AT_A_TIME)]
            say(f"{error} {len(keep)} layers stay in fp32: {', '.join(keep)}")


def quantize(tower: Any, observe: Callable[[], Any], largest: int, keep: Collection[str] = ()) -> None:
    """Replace the linear layers of a tower by layers in integers.

    Parameters
    ----------
    tower
        A `LanguageModel` or a `VisionEncoder`.
    observe
        Runs the tower on examples.
    largest
        The largest integer weight.
    keep
        Names of the linear layers that stay as they are.
    """
    columns = largest_inputs(tower, observe)
    rows: Scales = {}
    for producer, consumers in tower.scalable():
        weights = torch.stack([linear.weight.detach().abs().amax(0) for linear in consumers]).amax(0)
        factors = balance(columns[consumers[0]], weights)
        columns |= dict.fromkeys(consumers, factors)
        if isinstance(producer, nn.Linear):
            rows[producer] = factors
        else:
            for name, parameter in list(producer.named_parameters()):
                setattr(producer, name, nn.Parameter(parameter.detach() / factors, requires_grad=False))
    scaled = {linear for _, consumers in tower.scalable() for linear in consumers}
    for path, parent, name, child in linears(tower):
        linear = scale(child, columns[child] if child in scaled else None, rows.get(child))
        setattr(parent, name, linear if path in keep else QuantizedLinear(linear, largest))
    if isinstance(getattr(tower, "patch_embedding", None), PatchEmbedding):
        tower.patch_embedding = QuantizedPatchEmbedding(tower.patch_embedding, largest)
    if hasattr(tower, "embed_tokens"):
        tower.embed_tokens.weight = nn.Parameter(tower.embed_tokens.weight.detach().half(), requires_grad=False)
    if largest > 63:
        tower.exact_products = ExactProducts()


def balance(activations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the factor of each channel (I,) that makes its largest activation and its largest weight equal."""
    factors = (activations.clamp(min=1e-5) / weights.clamp(min=1e-5)).sqrt()
    return factors / factors.log().mean().exp()


def largest_inputs(tower: nn.Module, observe: Callable[[], Any]) -> Scales:
    """Return the largest activation of each input channel of each linear layer, (I,)."""
    seen: Scales = {}

    def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        largest = inputs[0].abs().amax(0)
        seen[module] = torch.maximum(seen.get(module, largest), largest)

    hooks = [child.register_forward_pre_hook(look) for _, _, _, child in linears(tower)]
    with torch.no_grad():
        observe()
    for hook in hooks:
        hook.remove()
    return seen


def worst_first(tower: nn.Module, observe: Callable[[], Any]) -> list[str]:
    """Return the names of the layers in integers, first the one that the rounding of activations harms most."""
    errors: dict[str, float] = {}

    def look(name: str, layer: QuantizedLinear, inputs: tuple[torch.Tensor]) -> None:
        weight = layer.weight.float() * layer.scales
        rows, scales = quantize_rows(inputs[0], LARGEST)
        exact, error = inputs[0] @ weight, (inputs[0] - rows * scales[:, None]) @ weight
        errors[name] = float((error.norm(dim=1) / exact.norm(dim=1).clamp(min=1e-9)).mean())

    layers = [(name, module) for name, module in tower.named_modules() if isinstance(module, QuantizedLinear)]
    hooks = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers]
    with torch.no_grad():
        observe()
    for hook in hooks:
        hook.remove()
    return sorted(errors, key=errors.__getitem__, reverse=True)


def linears(tower: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Return the linear layers: path, parent, name and layer."""
    for path, parent in list(tower.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                yield f"{path}.{name}".lstrip("."), parent, name, child


def scale(linear: nn.Linear, columns: torch.Tensor | None, rows: torch.Tensor | None) -> nn.Linear:
    """Return a layer for inputs that were divided by `columns` (I,), whose outputs are divided by `rows` (O,)."""
    scaled = nn.Linear(linear.in_features, linear.out_features, device="meta")
    weight, bias = linear.weight.detach(), linear.bias
    if columns is not None:
        weight = weight * columns
    if rows is not None:
        weight = weight / rows[:, None]
        bias = None if bias is None else nn.Parameter(bias.detach() / rows)
    scaled.weight, scaled.bias = nn.Parameter(weight, requires_grad=False), bias
    return scaled
