"""Towers in 8-bit integers: how near they come, what they promise to a batch, and what happens where they cannot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from export import quantization
from export.__main__ import export, export_towers
from export.calibration import QUERY_INSTRUCTION, Sample, read_samples, samples
from export.checkpoint import Checkpoint
from export.errors import DisagreementError, ExportError
from export.quantization import (
    QuantizedLinear,
    integer_speed,
    largest_weight,
    quantize,
    quantize_within,
    scale,
    worst_first,
)
from export.to_onnx import to_onnx
from export.validate import reference_cases, sample_cases, validate
from export.variants import INT8, choose_variants
from tests.conftest import ARCHITECTURES

(CPU,) = choose_variants(["cpu"], ["int8"])


class Tower(torch.nn.Module):
    """A norm and what reads it, as the towers have them."""

    def __init__(self, outliers: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.LayerNorm(64)
        self.norm.weight.data[:3] *= outliers
        self.up, self.down = torch.nn.Linear(64, 96), torch.nn.Linear(96, 32, bias=False)
        self.up.weight.data[:, :3] /= outliers

    def scalable(self) -> list[tuple[torch.nn.Module, list[torch.nn.Linear]]]:
        """Return what can be scaled by channel."""
        return [(self.norm, [self.up]), (self.up, [self.down])]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return rank 1."""
        return self.down(self.up(self.norm(x.view(-1, 64)))).flatten()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(((ours - theirs).norm() / theirs.norm()).detach())


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_against_transformers(size: str, checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(size)
    model = checkpoint.load_model()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    cases = reference_cases(checkpoint, model)
    for tower in ("vision_encoder", "language_model"):
        (tmp_path / tower / "1").mkdir(parents=True)
    beginnings = [checkpoint.beginning(QUERY_INSTRUCTION)]
    export_towers(tmp_path, checkpoint, model, cases, CPU, beginnings)
    report = validate(tmp_path, checkpoint, cases, CPU)  # the guards included
    assert min(cosine for name, cosine in report.items() if "alone" in name) >= 0.99999
    assert min(cosine for name, cosine in report.items() if "mean" in name) >= INT8.mean_cosine
    assert 0.8 <= report["nearest items kept"] <= 1
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    for tower in ("vision_encoder", "language_model"):
        graph = onnx.load(tmp_path / tower / "1/model.onnx").graph
        matrices = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 30]
        large = Counter(tensor.data_type for tensor in matrices)
        tables = {tuple(tensor.dims) for tensor in matrices if tensor.data_type == onnx.TensorProto.FLOAT}
        assert tables <= {tuple(model.visual.pos_embed.weight.shape)} and large[onnx.TensorProto.INT8]
        quantised = Counter(node.op_type for node in graph.node)
        assert quantised["MatMulIntegerToFloat"] == large[onnx.TensorProto.INT8] + 1, "some product is computed twice"


def test_a_linear_layer_in_a_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    layer = Flat(QuantizedLinear(linear, 127))
    to_onnx(layer, {"x": torch.randn(5 * 64)}, "y", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(40, 64)
    x[3] *= 1e4  # a neighbour of another size
    x[4] = 0
    ours = session.run(None, {"x": x.flatten().numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(ours), layer(x.flatten()))
    for row in range(5):
        alone = session.run(None, {"x": x[row].numpy()})[0]
        np.testing.assert_array_equal(alone, ours.reshape(40, 48)[row])
    theirs = linear(x)
    assert relative_error(torch.from_numpy(ours).view(40, 48)[:3], theirs[:3]) < 0.02
    torch.testing.assert_close(torch.from_numpy(ours).view(40, 48)[4], linear.bias)


class Flat(torch.nn.Module):
    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.view(-1, 64)).flatten()


def test_outliers_move_into_the_weights() -> None:
    x = torch.randn(200 * 64)
    errors = []
    for smooth in (True, False):
        tower = Tower(outliers=50)
        theirs = tower(x)
        if smooth:
            quantize(tower, lambda tower=tower: tower(x), 127)
        else:
            tower.up, tower.down = QuantizedLinear(tower.up, 127), QuantizedLinear(tower.down, 127)
        errors.append(relative_error(tower(x), theirs))
    assert errors[0] < 0.02 < 0.05 < errors[1]


def test_scaling_alone_changes_nothing() -> None:
    tower, x = Tower(outliers=50), torch.randn(200 * 64)
    theirs = tower(x)
    quantize(tower, lambda: tower(x), 127, keep=["up", "down"])
    assert {type(tower.up), type(tower.down)} == {torch.nn.Linear}
    torch.testing.assert_close(tower(x), theirs, atol=1e-5, rtol=1e-5)
    assert scale(tower.up, None, None).weight.data_ptr() == tower.up.weight.data_ptr()


def test_the_worst_layers_stay_as_they_are() -> None:
    x, said = torch.randn(200 * 64), []
    theirs = Tower()(x)

    def check_within(error: float) -> Callable[[Any], None]:
        def check(tower: Any) -> None:
            if (found := relative_error(tower(x), theirs)) > error:
                raise DisagreementError(f"{found} is too much.")

        return check

    def build() -> Tower:
        return Tower()

    tower = quantize_within(build, lambda tower: tower(x), check_within(0.02), said.append)
    assert {type(tower.up), type(tower.down)} == {QuantizedLinear} and not said
    worst = worst_first(tower, lambda: tower(x))
    less = 0.95 * relative_error(tower(x), theirs)
    tower = quantize_within(build, lambda tower: tower(x), check_within(less), said.append)
    kept = [name for name in ("up", "down") if type(getattr(tower, name)) is torch.nn.Linear]
    assert kept == worst[:1] and worst[0] in said[0]
    with pytest.raises(DisagreementError):
        quantize_within(build, lambda tower: tower(x), check_within(1e-6), said.append)


def test_wrong_products_make_every_vector_nan(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU that adds two products in 16 bits: here the expected sum is another."""
    monkeypatch.setattr(quantization, "EXACT_SUM", 64 * 255 * 127 - 1)
    with pytest.raises(ExportError, match="cosine nan"):
        export(str(checkpoint.folder), tmp_path / "repository", precisions=["int8"], min_cosine=0.9)


def test_cpus_without_exact_products_get_smaller_weights(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert largest_weight() in (63, 127)
    assert 2 * 255 * 63 < 2**15 < 2 * 255 * 127
    for module in ("quantization", "__main__"):
        monkeypatch.setattr(f"export.{module}.largest_weight", lambda: 63)
    export(str(checkpoint.folder), tmp_path / "repository", precisions=["int8"], min_cosine=0.99)
    described = json.loads((tmp_path / "repository/info/1/info.json").read_text())["variants"]["cpu"]
    assert described["precision"] == "int8"
    others = [{"precision": "fp32"}, {"precision": "int8", "largest_weight": "127"}]
    assert described["fingerprint"] not in [checkpoint.fingerprint(options) for options in others]
    for tower in ("vision_encoder", "language_model"):
        weights = [
            onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(tmp_path / "repository" / tower / "1/model.onnx").graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
        ]
        assert max(np.abs(weight).max() for weight in weights) == 63  # among them none of the check that 127 needs


@pytest.mark.parametrize(
    ("speed", "min_cosine", "said"), [(3.0, 0.99999, "It is written in fp32."), (0.5, 0.99, "0.50 times as fast")]
)
def test_the_fastest_that_is_near_enough(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    speed: float,
    min_cosine: float,
    said: str,
) -> None:
    monkeypatch.setattr("export.__main__.integer_speed", lambda: speed)
    monkeypatch.setattr(quantization, "KEPT_AT_A_TIME", 1)  # all at once, or the test would take long
    export(str(checkpoint.folder), tmp_path / "repository", precisions=["auto"], min_cosine=min_cosine)
    info = json.loads((tmp_path / "repository/info/1/info.json").read_text())
    assert info["variants"]["cpu"]["precision"] == "fp32"
    assert said in capsys.readouterr().out


def test_speed_is_measured() -> None:
    assert integer_speed() > 0


def test_everyday_samples(checkpoint: Checkpoint) -> None:
    found = list(samples())
    assert {sample.instruction for sample in found} > {QUERY_INSTRUCTION}
    assert sum(sample.image is not None for sample in found) == 4
    (case,) = sample_cases(checkpoint, checkpoint.load_model(), [found[-1]])
    assert case.grid_thw.tolist() == [[1, 10, 10]] and len(case.patches) == 25


def test_samples_of_the_user(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 30)).save(tmp_path / "picture.png")
    path = tmp_path / "samples.jsonl"
    rows = [{"text": "a"}, {"image": "picture.png"}, {"text": "b", "image": "picture.png", "instruction": "Find it."}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second, third = read_samples(path)
    assert first == Sample("a") and second.text == "" and third.instruction == "Find it."
    assert second.image is not None and second.image.mode == "RGB"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no item"),
        ('{"text": "a"}\n{"text": ', "line 2 is no JSON"),
        ('["a"]', "line 1: .* is no object of strings"),
        ('{"text": 3}', "is no object of strings"),
        ('{"txt": "a"}', "with the keys image, instruction, text"),
        ('{"instruction": "a"}', "neither `text` nor `image`"),
        ('{"image": "missing.png"}', "'missing.png' is no image that can be read"),
        ('{"image": "samples.jsonl"}', "is no image that can be read"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(content)
    with pytest.raises(ExportError, match=message):
        read_samples(path)


def test_no_file_of_samples(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Pass a file of JSON Lines"):
        read_samples(tmp_path / "none.jsonl")
