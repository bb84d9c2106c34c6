"""The CUDA towers at the 2B's full size on a GPU: agreement first, then speed beside transformers in the same process.

The weights are random, so that nothing has to be downloaded; speed does not depend on them. The reference is
transformers' own forward pass in float32 on the same card. transformers in bfloat16 with PyTorch's flash attention is
what sentence-transformers runs. Batches are of equal lengths, which costs transformers no padding.

    ./scripts/benchmark gpu --folder DIR

Letters: n items, L tokens or patches of an item, T tokens of a batch, V visual tokens, D hidden size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from demo.untrained import ARCHITECTURE_2B, train_tokenizer, write_untrained
from export.__main__ import export
from export.reference import lay_out
from server.launch import TritonServer
from server.paths import local_path
from vlembed import EmbeddingClient

from .report import report

PEAK_TFLOPS = 989.5  # dense bfloat16 of an H100 or H200 SXM
AGREEMENT_LENGTHS = (1, 2, 31, 97, 128, 129, 255, 256, 257, 1000, 4000)  # around the rows of a page, too
TEXT_LENGTHS = (32, 128, 512, 2048)
IMAGE_SIDES_PX = (224, 512, 1024)
BATCH_TOKENS = (2048, 32768)  # tokens or patches of a batch, about
PROMPT_TOKENS = 16  # of an image's template
MIN_COSINE = 0.999

Array = npt.NDArray[Any]


def prepare(folder: Path) -> tuple[Path, Path]:
    """Return a checkpoint of the 2B's architecture with random weights, and its exported repository."""
    checkpoint, repository = folder / "random-2b", folder / "repository"
    if not checkpoint.exists():
        tokenizer = train_tokenizer(map(str, range(1000)), vocab_size=600)
        write_untrained(checkpoint, ARCHITECTURE_2B, tokenizer, dtype=torch.bfloat16)
    if not repository.exists():
        export(str(checkpoint), repository, variants=["cuda"])
    return checkpoint, repository


def load(checkpoint: Path, dtype: torch.dtype) -> Any:
    """Load transformers' model onto the GPU."""
    whole = Qwen3VLForConditionalGeneration.from_pretrained(
        checkpoint,
        dtype=dtype,
        attn_implementation="sdpa",
        device_map="cuda",
        trust_remote_code=False,
        use_safetensors=True,
    )
    return whole.model.eval()


class GpuTower:
    """A CUDA graph; what goes in comes from the host unless it lies on the GPU already, and the output stays there."""

    def __init__(self, path: Path, output: str) -> None:
        options = {"arena_extend_strategy": "kSameAsRequested"}
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.enable_mem_pattern = False  # as in configs/cuda.pbtxt: sizes change with every batch
        self.session = onnxruntime.InferenceSession(
            path, settings, providers=[("CUDAExecutionProvider", options), "CPUExecutionProvider"]
        )
        if self.session.get_providers()[0] != "CUDAExecutionProvider":
            raise SystemExit("error: onnxruntime has no CUDA here; install onnxruntime-gpu and the libraries it names.")
        self.output = output

    def run(self, feed: dict[str, Any]) -> Any:
        """Return the output as an OrtValue on the GPU."""
        binding = self.session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        binding.bind_output(self.output, "cuda")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0]


def text_request(ids: list[Array], config: Any) -> dict[str, Array]:
    """Return a pack of texts with its sentinel image token."""
    lengths = [*map(len, ids), 1]
    return {
        "input_ids": np.concatenate([*ids, [config.image_token_id]]).astype(np.int64),
        "position_ids": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])[:, None].repeat(3, axis=1),
        "lengths": np.array(lengths, np.int32),
        "image_embeds": np.zeros(4 * config.text_config.hidden_size, np.float32),
    }


def image_request(n: int, side: int, generator: np.random.Generator) -> dict[str, Array]:
    """Return the patches of n square images of `side` patches."""
    return {
        "patches": generator.integers(0, 256, (n * side * side // 4, 6144), np.uint8),
        "grid_thw": np.array([[1, side, side]] * n, np.int32),
    }


def image_prompts(n: int, side: int, model: Any, generator: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    """Return ids (n, L), token types, positions (3, n, L) and grids of n prompts with an image each."""
    num_visual = side * side // 4
    ids = generator.integers(0, 1000, (n, PROMPT_TOKENS + num_visual))
    ids[:, 4 : 4 + num_visual] = model.config.image_token_id
    input_ids = torch.from_numpy(ids).cuda()
    types = (input_ids == model.config.image_token_id).int()
    grid = torch.tensor([[1, side, side]] * n).cuda()
    positions, _ = model.get_rope_index(input_ids, types, image_grid_thw=grid)
    return input_ids, types, positions, grid


def median_s(work: Callable[[], Any], seconds: float = 0.6) -> float:
    """Return the median time of the work, GPU included."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def cosines(ours: Array, theirs: Array) -> Array:
    """Return the cosine of each row."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return np.asarray((ours * theirs).sum(-1) / norms)


def half_noise(model: Any, half: Any) -> float:
    """Return the cosine of transformers in bfloat16 to transformers in float32: what the precision costs by itself."""
    generator = np.random.default_rng(0)
    found = []
    with torch.no_grad():
        for length in AGREEMENT_LENGTHS:
            ids = torch.from_numpy(generator.integers(0, 150_000, length))[None].cuda()
            states = [m.language_model(input_ids=ids).last_hidden_state[:, -1].float().cpu() for m in (half, model)]
            found.append(cosines(states[0].numpy(), states[1].numpy())[0])
    return float(min(found))


def agreement(model: Any, vision: GpuTower, language: GpuTower) -> dict[str, float]:
    """Compare items of many sizes, in one batch and alone, with transformers in float32; and the guard."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 150_000, n) for n in AGREEMENT_LENGTHS]
    texts = [text_request([item], model.config) for item in ids]
    together = language.run(lay_out(texts)).numpy()[::2]  # the sentinels come second
    alone = np.concatenate([language.run(lay_out([request])).numpy()[:1] for request in texts])
    with torch.no_grad():
        theirs = np.concatenate(
            [
                model.language_model(input_ids=torch.from_numpy(item)[None].cuda()).last_hidden_state[:, -1].cpu()
                for item in ids
            ]
        )
    found = {
        "texts, cosine to float32, smallest": float(cosines(together, theirs).min()),
        "texts alone to texts in a batch, smallest": float(cosines(alone, together).min()),
    }
    liar = {**texts[3], "lengths": np.array([5, 5], np.int32)}
    guarded = language.run(lay_out([texts[2], liar, texts[4]])).numpy()
    if not np.isnan(guarded[2:4]).all() or np.isnan(guarded[[0, 4]]).any():
        raise SystemExit("error: a request that contradicts itself is not NaN, or harms its neighbours.")

    images = [image_request(1, side, generator) for side in (2, 14, 32, 64)]
    embeds = vision.run(lay_out(images)).numpy()
    expected = []
    with torch.no_grad():
        for image in images:
            pixels = torch.from_numpy(image["patches"].reshape(-1, 1536)).cuda().float() / 127.5 - 1
            output = model.visual(pixels, grid_thw=torch.from_numpy(image["grid_thw"]).long().cuda())
            expected.append(torch.cat([output.pooler_output, *output.deepstack_features], dim=1).cpu().numpy())
    found["visual tokens, cosine to float32, smallest"] = float(cosines(embeds, np.concatenate(expected)).min())
    found["visual tokens, cosine to float32, mean"] = float(cosines(embeds, np.concatenate(expected)).mean())
    alone = np.concatenate([vision.run(lay_out([image])).numpy() for image in images])
    found["visual tokens alone to in a batch, smallest"] = float(cosines(alone, embeds).min())

    whole = []
    for side in (14, 32, 64):
        input_ids, types, positions, grid = image_prompts(1, side, model, generator)
        patches = image_request(1, side, generator)
        with torch.no_grad():
            pixels = torch.from_numpy(patches["patches"].reshape(-1, 1536)).cuda().float() / 127.5 - 1
            theirs = model(
                input_ids=input_ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=types
            ).last_hidden_state[:, -1]
            model.rope_deltas = None
        feed = image_language_feed(input_ids, positions, vision.run(lay_out([patches])))
        whole.append(cosines(language.run(feed).numpy(), theirs.cpu().numpy())[0])
    found["images, both towers, cosine to float32, smallest"] = float(min(whole))
    return found


def image_language_feed(input_ids: torch.Tensor, positions: torch.Tensor, image_embeds: Any) -> dict[str, Any]:
    """Return the language tower's inputs for prompts with an image each, as one request."""
    n, length = input_ids.shape
    feed = lay_out(
        [
            {
                "input_ids": input_ids.cpu().numpy(),
                "position_ids": positions.permute(1, 2, 0).cpu().numpy().astype(np.int32),
                "lengths": np.full(n, length, np.int32),
            }
        ]
    )
    size = int(np.prod(image_embeds.shape()))
    feed["image_embeds"] = onnxruntime.OrtValue.ortvalue_from_numpy(image_embeds.numpy().reshape(-1), "cuda", 0)
    feed["image_embeds_offsets"] = np.array([0, size], np.int32)
    return feed


def text_flops(length: int) -> float:
    """Operations of one text: matrix products, and causal attention by half."""
    layer = 2048 * (2048 + 1024 + 1024 + 2048 + 3 * 6144)
    return 28 * length * (2 * layer + 2 * length * 2048)


def vision_flops(num_patches: int) -> float:
    """Operations of one image."""
    block = 1024 * (3 * 1024 + 1024 + 2 * 4096)
    mergers = num_patches // 4 * 4 * (4096 * 4096 + 4096 * 2048)
    return num_patches * (24 * (2 * block + 4 * num_patches * 1024) + 2 * 1536 * 1024) + 2 * mergers


def measure_texts(model: Any, language: GpuTower) -> dict[str, float]:
    """Return texts per second of both, and the share of the card's peak."""
    generator = np.random.default_rng(1)
    found = {}
    for length in TEXT_LENGTHS:
        for tokens in BATCH_TOKENS:
            n = max(1, tokens // length)
            ids = generator.integers(0, 150_000, (n, length))
            feed = lay_out([text_request(list(ids), model.config)])
            input_ids = torch.from_numpy(ids).cuda()

            def theirs(input_ids: torch.Tensor = input_ids) -> None:
                with torch.no_grad():
                    model.language_model(input_ids=input_ids).last_hidden_state[:, -1].float().cpu()

            def ours(feed: dict[str, Any] = feed) -> None:
                language.run(feed).numpy()

            ours_s, theirs_s = median_s(ours), median_s(theirs)
            what = f"texts of {length} tokens, {n} at a time"
            found[f"{what}, texts/s"] = n / ours_s
            found[f"{what}, transformers, texts/s"] = n / theirs_s
            found[f"{what}, ratio"] = theirs_s / ours_s
            found[f"{what}, share of peak"] = n * text_flops(length) / ours_s / PEAK_TFLOPS / 1e12
            print(f"{what}: {n / ours_s:.0f}/s, ratio {theirs_s / ours_s:.2f}, "
                  f"{found[f'{what}, share of peak']:.1%} of peak", flush=True)  # fmt: skip
    return found


def measure_images(model: Any, vision: GpuTower, language: GpuTower) -> dict[str, float]:
    """Return images per second through both towers."""
    generator = np.random.default_rng(2)
    found = {}
    for side_px in IMAGE_SIDES_PX:
        side = side_px // 16
        for patches in BATCH_TOKENS:
            n = max(1, patches // side**2)
            feed = lay_out([image_request(n, side, generator)])
            input_ids, types, positions, grid = image_prompts(n, side, model, generator)
            language_feed = image_language_feed(input_ids, positions, vision.run(feed))
            pixels = torch.from_numpy(feed["patches"].reshape(-1, 1536)).cuda()

            def theirs(input_ids: Any = input_ids, types: Any = types, grid: Any = grid, pixels: Any = pixels) -> None:
                with torch.no_grad():
                    values = (pixels.float() / 127.5 - 1).to(torch.bfloat16)
                    model.rope_deltas = None
                    model(input_ids=input_ids, pixel_values=values, image_grid_thw=grid, mm_token_type_ids=types)

            vision_s, language_s = median_s(partial(vision.run, feed)), median_s(partial(language.run, language_feed))
            theirs_s = median_s(theirs)
            ours_s = vision_s + language_s
            operations = n * (vision_flops(side**2) + text_flops(input_ids.shape[1]))
            what = f"images of {side_px} px, {n} at a time"
            found[f"{what}, images/s"] = n / ours_s
            found[f"{what}, transformers, images/s"] = n / theirs_s
            found[f"{what}, ratio"] = theirs_s / ours_s
            found[f"{what}, share of peak"] = operations / ours_s / PEAK_TFLOPS / 1e12
            found[f"{what}, vision tower, share of peak"] = n * vision_flops(side**2) / vision_s / PEAK_TFLOPS / 1e12
            print(f"{what}: {n / ours_s:.0f}/s, ratio {theirs_s / ours_s:.2f}, vision {vision_s * 1e3:.1f} ms "
                  f"({found[f'{what}, vision tower, share of peak']:.1%} of peak), language {language_s * 1e3:.1f} ms",
                  flush=True)  # fmt: skip
    return found


def measure_latency(model: Any, vision: GpuTower, language: GpuTower) -> dict[str, float]:
    """Return p50 and p99 of single requests, in ms."""
    generator = np.random.default_rng(3)
    text = lay_out([text_request([generator.integers(0, 150_000, 32)], model.config)])
    image = lay_out([image_request(1, 32, generator)])
    works: dict[str, Callable[[], Any]] = {
        "a text of 32 tokens": lambda: language.run(text).numpy(),
        "an image of 512 px, vision tower": partial(vision.run, image),
    }
    found: dict[str, float] = {}
    for what, work in works.items():
        found |= latencies(what, work)
    return found


def latencies(what: str, work: Callable[[], Any]) -> dict[str, float]:
    """Return p50 and p99 of 200 runs in a row, in ms."""
    taken = []
    for _ in range(220):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1e3)
    return {f"{what}, p{q} ms": float(np.percentile(taken[20:], q)) for q in (50, 99)}


def profile(work: Callable[[], Any]) -> list[str]:
    """Return the kernels that take most of the work's GPU time."""
    work()
    torch.cuda.synchronize()
    profiler: Any = torch.profiler
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    rows = sorted(recorded.key_averages(), key=lambda event: -event.device_time_total)
    total = sum(event.device_time_total for event in rows) or 1
    return [
        f"{event.device_time_total / total:6.1%} {event.device_time_total / 1e3:8.2f} ms {event.count:5d} x {event.key}"
        for event in rows[:16]
    ]


def measure_served(repository: Path) -> dict[str, float]:
    """Return rates of a client on a real server on this machine, preprocessing and every copy included."""
    texts = {words: [f"{i} " + "seven " * words for i in range(64 * 32)] for words in (8, 150)}
    generator = np.random.default_rng(5)
    images = [Image.fromarray(generator.integers(0, 256, (512, 512, 3), np.uint8)) for _ in range(64)]
    found: dict[str, float] = {}
    with TritonServer(repository, model_config_name="cuda") as server, EmbeddingClient(server.grpc_url) as client:
        workloads: dict[str, list[Any]] = {f"texts of {words} words": texts[words] for words in texts}
        for what, items in (workloads | {"images of 512 px": images}).items():
            client.embed(items)
            started = time.perf_counter()
            embeddings = client.embed(items)
            rate = len(items) / (time.perf_counter() - started)
            tokens = embeddings.text_tokens.mean() + embeddings.image_tokens.mean()
            found[f"served, {what}, {tokens:.0f} tokens, items/s"] = rate
        found |= latencies("served, a short query", partial(client.embed, "a short query of a few words"))
    return found


def measure_sentence_transformers(checkpoint: Path) -> dict[str, float]:
    """Return texts per second of sentence-transformers in bfloat16, tokenising included."""
    from sentence_transformers import SentenceTransformer  # not in the serving environment

    model = SentenceTransformer(str(checkpoint), device="cuda", model_kwargs={"dtype": torch.bfloat16})
    found = {}
    for words in (8, 150):
        texts = [f"{i} " + "seven " * words for i in range(64 * 32)]
        model.encode(texts[:128], batch_size=128)
        started = time.perf_counter()
        model.encode(texts, batch_size=128)
        found[f"sentence-transformers, texts of {words} words, texts/s"] = len(texts) / (time.perf_counter() - started)
    return found


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=local_path, required=True, help="where the 2B is made, some 9 GB")
    parser.add_argument("--profile", action="store_true", help="also show the kernels that take the time")
    parser.add_argument("--served", action="store_true", help="also measure a client on a server")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: PyTorch sees no CUDA device. This benchmark needs an NVIDIA GPU.")
    checkpoint, repository = prepare(arguments.folder)
    free = torch.cuda.mem_get_info()[0]
    vision = GpuTower(repository / "vision_encoder/1/cuda.onnx", "image_embeds")
    language = GpuTower(repository / "language_model/1/cuda.onnx", "pooled")
    rows: dict[str, float] = {"GPU memory of both towers loaded, GB": (free - torch.cuda.mem_get_info()[0]) / 1e9}
    model, half = load(checkpoint, torch.float32), load(checkpoint, torch.bfloat16)
    agreed = agreement(model, vision, language)
    agreed["texts, transformers in bfloat16, cosine to float32, smallest"] = half_noise(model, half)
    for what, value in agreed.items():
        print(f"{what}: {value:.6f}", flush=True)
    if min(agreed.values()) < MIN_COSINE:
        raise SystemExit(f"error: a cosine is below {MIN_COSINE}; speed does not matter then.")
    rows |= agreed
    model = half
    torch.cuda.empty_cache()
    rows |= measure_latency(model, vision, language)
    rows |= measure_texts(model, language)
    rows |= measure_images(model, vision, language)
    if arguments.profile:
        show_profiles(model, vision, language)
    card = torch.cuda.get_device_name()
    del vision, language, model, half
    torch.cuda.empty_cache()
    with suppress(ImportError):
        rows |= measure_sentence_transformers(checkpoint)
    if arguments.served:
        rows |= measure_served(repository)
    report("gpu", rows, card=card, torch=torch.__version__, onnxruntime=onnxruntime.__version__)


def show_profiles(model: Any, vision: GpuTower, language: GpuTower) -> None:
    """Print where the GPU's time goes."""
    generator = np.random.default_rng(4)
    texts = lay_out([text_request(list(generator.integers(0, 150_000, (64, 512))), model.config)])
    images = lay_out([image_request(32, 32, generator)])
    single = lay_out([text_request([generator.integers(0, 150_000, 32)], model.config)])
    for what, work in (
        ("64 texts of 512 tokens", lambda: language.run(texts)),
        ("32 images of 512 px", lambda: vision.run(images)),
        ("one text of 32 tokens", lambda: language.run(single)),
    ):
        print(f"--- {what}", *profile(work), sep="\n", flush=True)


if __name__ == "__main__":
    main()
