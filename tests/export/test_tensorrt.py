"""The TensorRT variant without a GPU: its numbers on a CPU, TensorRT's own parser and builder, and what is placed.

Engines are built for cards that are not there, and never run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxscript import FLOAT, INT32, opset23, script
from onnxscript.values import Opset

from export import engines
from export.__main__ import export, export_towers
from export.build_engines import GRAPHS, PLAN, build_engines, find_profile
from export.checkpoint import Checkpoint, ExportError
from export.reference import Cosines, Reference
from export.repository import TEMPLATE
from export.validate import Examples, Tower, reference_cases, validate
from export.variants import BF16, FP32, VARIANTS
from tests.conftest import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = {"vision_encoder": "image_embeds", "language_model": "pooled"}
TOWERS = tuple(OUTPUTS)
TENSORRT = VARIANTS["tensorrt"]
# With ONNX Runtime: all operators of the padded graph are standard ones.
ON_A_CPU = replace(TENSORRT, precision=FP32, provider=VARIANTS["cpu"].provider, graph=TENSORRT.padded)
op = opset23


@pytest.fixture(scope="module")
def repository(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the TensorRT variant alone."""
    folder = tmp_path_factory.mktemp("tensorrt") / "repository"
    export(str(checkpoint.folder), folder, variants=["tensorrt"])
    return folder


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """Return a repository of one test's own."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.fixture
def library() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which ./scripts/install --dev brings")


# --- numbers ---


@script(Opset("tensorrt", 1), default_opset=opset23)
def TRT_Attention(  # noqa: N802 - the operator's name
    query: FLOAT[...],
    key: FLOAT[...],
    value: FLOAT[...],
    mask: FLOAT[...],
    query_ends: INT32[...],
    key_ends: INT32[...],
    query_form: str,
    kv_form: str,
    is_causal: int,
    scale: float,
) -> FLOAT[...]:
    """Do what TensorRT documents of its operator, with standard ones: attend to all items under a mask."""
    row = op.Range(0, op.Squeeze(op.Shape(query)[0:1]), 1)
    started = op.Cast(op.Unsqueeze(op.Cast(key_ends, to=7), [0]) <= op.Unsqueeze(row, [1]), to=7)  # (T, n + 1)
    item = op.ReduceSum(started, [1], keepdims=0)  # (T,)
    same = op.Unsqueeze(item, [1]) == op.Unsqueeze(item, [0])
    earlier = op.Unsqueeze(row, [1]) >= op.Unsqueeze(row, [0])
    seen = op.And(same, op.Or(earlier, op.Constant(value_int=is_causal) == 0))
    attended = op.Attention(
        op.Unsqueeze(op.Transpose(query, perm=[1, 0, 2]), [0]),
        op.Unsqueeze(op.Transpose(key, perm=[1, 0, 2]), [0]),
        op.Unsqueeze(op.Transpose(value, perm=[1, 0, 2]), [0]),
        op.Unsqueeze(seen, [0, 1]),
        scale=scale,
    )
    return op.Transpose(op.Squeeze(attended, [0]), perm=[1, 0, 2])


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_against_transformers_in_float32(size: str, checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(size)
    model = checkpoint.load_model()
    cases = reference_cases(checkpoint, model)
    for tower in TOWERS:
        (tmp_path / tower / "1").mkdir(parents=True)
    export_towers(tmp_path, checkpoint, model, cases, replace(TENSORRT, precision=FP32))
    assert min(validate(tmp_path, checkpoint, cases, ON_A_CPU).values()) >= FP32.min_cosine  # the guards included
    for tower in TOWERS:
        packed = onnx.load(tmp_path / tower / "1" / TENSORRT.graph, load_external_data=False)
        packed.functions.append(TRT_Attention.to_function_proto())
        onnx.save(packed, tmp_path / tower / "1/with_a_body.onnx")
    with_a_body = replace(ON_A_CPU, graph="with_a_body.onnx")
    assert min(validate(tmp_path, checkpoint, cases, with_a_body).values()) >= FP32.min_cosine


@pytest.mark.parametrize("tower", TOWERS)
def test_graphs(tower: str, repository: Path, checkpoint: Checkpoint) -> None:
    folder = repository / tower / "1"
    packed, padded = (onnx.load(folder / graph, load_external_data=False) for graph in GRAPHS)
    assert [(opset.domain, opset.version) for opset in packed.opset_import] == [("", 24), ("tensorrt", 1)]
    assert [(opset.domain, opset.version) for opset in padded.opset_import] == [("", 24)]
    assert len([node for node in packed.graph.node if node.op_type == "TRT_Attention"]) == 4
    for model in (packed, padded):
        operators = {node.op_type for node in model.graph.node}
        assert not {"Loop", "If", "NonZero", "SequenceEmpty", "Compress"} & operators
        for node in model.graph.node:
            assert all(attribute.s == b"none" for attribute in node.attribute if attribute.name == "reduction")
            if "patches" in node.input:
                assert node.op_type in ("Cast", "Shape")
        assert model.graph.input == packed.graph.input and model.graph.output == packed.graph.output
        (output,) = model.graph.output
        assert (output.name, output.type.tensor_type.elem_type) == (OUTPUTS[tower], onnx.TensorProto.FLOAT)
        names = {tensor.name for tensor in model.graph.input}
        config = (repository / tower / "configs/tensorrt.pbtxt").read_text()
        assert names == set(find_profile(repository, tower, {}))
        assert all(f'"{name}"' in config for name in {*names, output.name})
    assert not (folder / f"{GRAPHS[1]}.data").exists()  # both have the same weights
    assert sorted(path.stem for path in repository.glob("*/configs/*")) == ["tensorrt"] * 3


def test_the_reference_is_what_export_checks_with(repository: Path, checkpoint: Checkpoint) -> None:
    cases = reference_cases(checkpoint, checkpoint.load_model())
    for tower, ours in (
        ("vision_encoder", Examples.of_images(cases)),
        ("language_model", Examples.of_items(checkpoint, cases)),
    ):
        theirs, tolerance = Reference.load(repository / tower / "1/reference.npz")
        assert tolerance == Cosines(BF16.min_cosine, BF16.mean_cosine, BF16.min_alone)
        assert theirs.falsified == ours.falsified
        np.testing.assert_array_equal(theirs.rows, ours.rows)
        np.testing.assert_array_equal(theirs.expected, ours.expected)
        for request, expected in zip(theirs.requests, ours.requests, strict=True):
            assert {name: (array.shape, array.dtype) for name, array in request.items()} == {
                name: (array.shape, array.dtype) for name, array in expected.items()
            }
            for name, array in request.items():
                np.testing.assert_array_equal(array, expected[name])


# --- the real parser and the real builder ---


@pytest.mark.usefixtures("library")
def test_packed_attention_is_asked_for_and_padded_is_built(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plans = build_engines(copied, "SM89")
    assert plans == [copied / tower / "1" / PLAN for tower in TOWERS]
    assert all(plan.stat().st_size > 2**20 for plan in plans)
    said = capfd.readouterr().out
    for graph in GRAPHS:  # the parser takes both
        assert said.count(f"{graph}: parsed") == len(TOWERS)
    # When this fails, packed attention is built ahead of time, too: say so in docs/gpu.md.
    assert said.count(f"does not build {GRAPHS[0]}") == said.count("no fused kernel is available") == len(TOWERS)
    assert said.count(f"{GRAPHS[1]}: built, ") == len(TOWERS)
    assert "placed for SM89, and NOT RUN" in said


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("capability", ["SM80", "SM120"])
@pytest.mark.parametrize("tower", TOWERS)
def test_engines_of_other_cards(tower: str, capability: str, repository: Path) -> None:
    plan = engines.build(
        repository / tower / "1" / GRAPHS[1], find_profile(repository, tower, {}), compute_capability=capability
    )
    assert len(plan) > 2**20


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_engines_of_other_precisions(
    precision: str, checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    export(str(checkpoint_of("wide").folder), repository, variants=["tensorrt"], precisions=[precision])
    build_engines(repository, "SM89")


# --- what is refused ---


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repository", "nowhere", "--compute-capability", "SM89"], r"lacks tensorrt.onnx, .*--variant tensorrt"),
        (["--repository", "nowhere", "--compute-capability", "SM1"], r"does not build for 'SM1'; it builds for .*SM89"),
        (["--repository", "nowhere"], "there is no NVIDIA GPU here"),
    ],
)
def test_the_command_refuses_in_one_sentence(arguments: list[str], message: str) -> None:
    if "GPU" in message and engines.has_card():
        pytest.skip("there is a GPU here")
    ran = subprocess.run(
        [sys.executable, "-m", "export.build_engines", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    with pytest.raises(ExportError, match=message):
        raise ExportError(ran.stderr)


def test_without_torch(repository: Path, tmp_path: Path) -> None:
    """NVIDIA's container has TensorRT and NumPy."""
    program = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime'));"
        "from export import build_engines, engines; from export.reference import Reference; from pathlib import Path;"
        f"print(len(Reference.load(Path({str(repository)!r}) / 'vision_encoder/1/reference.npz')[0].requests))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 1


@pytest.mark.parametrize("wrong", [None, "packed", "both"])
def test_a_plan_is_placed_if_it_agrees(
    wrong: str | None, copied: Path, monkeypatch: pytest.MonkeyPatch, repository_of: Callable[[str], Path]
) -> None:
    """The builder and the card are stood in for; which plan is placed, and that none is, does not depend on them."""
    on_a_cpu = repository_of("tiny")

    def run(plan: bytes) -> Tower:
        path = Path(plan.decode())
        tower, graph = path.parts[-3], path.name
        names = tuple(Reference.load(copied / tower / "1/reference.npz")[0].requests[0])
        runs = Tower(on_a_cpu / tower / "1/model.onnx", names, OUTPUTS[tower])
        if wrong == "both" or (wrong == "packed" and graph == GRAPHS[0]):
            right = runs.run
            runs.run = lambda requests: right(requests)[::-1]  # type: ignore[method-assign]
        return runs

    monkeypatch.setattr(engines, "check_target", lambda capability: None)
    monkeypatch.setattr(engines, "load_library", lambda: np)  # for its name and version
    monkeypatch.setattr(engines, "build", lambda graph, profile, **options: str(graph).encode())
    monkeypatch.setattr(engines, "EngineTower", run)
    stale = copied / "vision_encoder/1" / PLAN
    stale.write_text("of an earlier build")
    if wrong == "both":
        with pytest.raises(ExportError, match=r"no engine of vision_encoder: .* cosine .* to the reference"):
            build_engines(copied)
        assert not list(copied.glob(f"*/1/{PLAN}*"))
    else:
        plans = build_engines(copied)
        assert {Path(plan.read_text()).name for plan in plans} == {GRAPHS[1 if wrong else 0]}


def test_profiles_follow_the_bounds_and_the_packs() -> None:
    profile = find_profile(TEMPLATE, "language_model", {})
    assert profile["input_ids"] == (1, 2048, 4 * (16384 + 1))
    assert profile["position_ids"] == (3, 3 * 2048, 3 * 4 * (16384 + 1))
    assert profile["lengths"] == (1, 32, 4 * (64 + 1))
    assert profile["image_embeds"] == (8192, 512 * 8192, 4 * 4096 * 8192)
    assert profile["input_ids_offsets"] == (2, 2, 5)
    assert find_profile(TEMPLATE, "vision_encoder", {})["patches"] == (6144, 1024 * 6144, 4 * 4096 * 6144)
    batch = {"lengths": np.zeros(1000), "lengths_offsets": np.zeros(12)}  # larger than any of the server's
    profile = find_profile(TEMPLATE, "language_model", batch)
    assert (profile["lengths"][2], profile["lengths_offsets"][2]) == (1000, 12)
