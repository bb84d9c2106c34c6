"""The systems that are compared: each is started in a `with` block and embeds lists of items.

What runs in an environment of its own is `<name of the requirements>.txt` and a script beside this file.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.launch import TritonServer
from vlembed import EmbeddingClient
from vlembed import Item as ClientItem

from ..environments import MAX_REASON, python_of, run_environment
from ..report import ROOT
from ..serving import Batch, InProcess
from ..workload import Item, is_text

Vectors = npt.NDArray[np.float32]
CONCURRENCY = 64  # requests in flight of a bulk of items: enough to fill every batch
PACK_ITEMS, PACK_IMAGE_TOKENS = 16, 4096  # the most of a request to our own server
PACKS_IN_FLIGHT = 4
PIXELS_OF_A_TOKEN = 32 * 32
START_TIMEOUT_S = 300.0
REQUEST_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 20.0
LOG_LINES = 3  # of a process that failed
PROBE: Item = ("ready?", b"")
PROMPT = (  # as the chat template and the tokenizer write a text; some servers strip white space from its end
    "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n<|endoftext|>"
)


class SystemFailedError(Exception):
    """A system could not be installed, started or used; the message is the reason that the report gives."""


@dataclass(frozen=True)
class Setup:
    """What all systems are made of."""

    cache: Path  # of the environments
    checkpoint: Path
    repository: Path  # exported from it
    dtype: str  # of the peers that are served: what is faster here
    batch_size: int  # of those peers: sentence-transformers' best


class System:
    """One way to embed; subclasses start in `_start` and embed in `embed`."""

    name: str
    is_served = True
    has_images = True

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.settings: dict[str, Any] = {}  # that the report prints

    def __enter__(self) -> System:
        """Start, and return when a text was embedded."""
        with ExitStack() as cleanup:
            self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        """Stop."""
        self._cleanup.close()

    def _start(self, cleanup: ExitStack) -> None:
        raise NotImplementedError

    def embed(self, items: list[Item]) -> Vectors:
        """Return unit vectors (n, D); threads may call it at the same time."""
        raise NotImplementedError

    def prepare(self, items: list[Item]) -> None:
        """Do what embedding these items shall not be charged for."""

    def can(self, items: list[Item]) -> bool:
        """Tell whether the system takes these items."""
        return self.has_images or is_text(items)


class Ours(System):
    """What this project serves on Triton, through its client."""

    name = "vlembed"

    def _start(self, cleanup: ExitStack) -> None:
        server = cleanup.enter_context(TritonServer(self.setup.repository))
        self.client = cleanup.enter_context(EmbeddingClient(server.grpc_url, timeout_s=REQUEST_TIMEOUT_S))
        self.settings = {"items of a request": PACK_ITEMS}
        self.client.embed(PROBE[0])

    def embed(self, items: list[Item]) -> Vectors:
        """Send packs, a few at a time."""
        packs = split(items)
        if len(packs) == 1:
            return self._embed_pack(packs[0])
        with ThreadPoolExecutor(PACKS_IN_FLIGHT) as pool:
            return np.concatenate(list(pool.map(self._embed_pack, packs)))

    def _embed_pack(self, items: list[Item]) -> Vectors:
        told = [ClientItem(text=text or None, image=image or None) for text, image in items]
        return self.client.embed(told).array


class OursInProcess(System):
    """The two towers in this process, on packs that were made beforehand: what Triton and the client add is missing."""

    name = "vlembed in process"
    is_served = False

    def _start(self, cleanup: ExitStack) -> None:
        self.towers = InProcess(self.setup.repository)
        cleanup.callback(self.__dict__.pop, "towers")
        self.made: dict[tuple[Item, ...], list[Batch]] = {}

    def prepare(self, items: list[Item]) -> None:
        """Preprocess."""
        if tuple(items) not in self.made:
            packs = split(items)
            parts = [packs[i : i + PACKS_IN_FLIGHT] for i in range(0, len(packs), PACKS_IN_FLIGHT)]
            self.made[tuple(items)] = [self.towers.batch(part) for part in parts]

    def embed(self, items: list[Item]) -> Vectors:
        """Run the packs that the server would get, as many at a time as are in flight there."""
        self.prepare(items)
        pooled = np.concatenate([self.towers.pooled(batch) for batch in self.made[tuple(items)]])
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


class PeerProcess(System):
    """A process in an environment of its own."""

    requirements: str

    def _spawn(self, cleanup: ExitStack, arguments: list[str], **environment: str) -> None:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vlembed-peer-")))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**run_environment(), **environment},
                start_new_session=True,  # its workers are ended with it
            )
        cleanup.callback(self._end)

    def _python(self) -> Path:
        return python_of(self.setup.cache, self.requirements)

    def _script(self, name: str) -> list[str]:
        return [str(self._python()), "-m", f"benchmark.peers.{name}"]

    def _peer_settings(self, **more: Any) -> str:
        self.settings = {"dtype": self.setup.dtype, "batch_size": self.setup.batch_size, **self.settings}
        return json.dumps({"checkpoint": str(self.setup.checkpoint), **self.settings, **more})

    def _end(self) -> None:
        for stop_signal in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        # workers that outlive their parent are of the same group
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _check_alive(self, deadline: float) -> None:
        """Raise with the end of the log if the process ended, or has not answered in time."""
        ended = self.process.poll() is not None
        if ended or time.monotonic() > deadline:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            what = "ended" if ended else "did not answer"
            telling = [line for line in lines if "Error" in line][-1:] or lines[-LOG_LINES:]
            raise SystemFailedError(f"{self.name} {what}: {' | '.join(telling)[-MAX_REASON:]}")


class SentenceTransformers(PeerProcess):
    """The library in a process of its own, without a server; batches go through a socket."""

    requirements = "sentence-transformers"
    is_served = False

    def __init__(self, setup: Setup, dtype: str) -> None:
        super().__init__(setup)
        self.name = f"sentence-transformers {dtype}"
        self.settings = {"dtype": dtype}
        self.best: dict[str, int] = {}  # batch size of a workload
        self.batch_size: int | None = None

    def _start(self, cleanup: ExitStack) -> None:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vlembed-peer-")))
        listener = cleanup.enter_context(Listener(str(folder / "socket"), family="AF_UNIX"))
        self._spawn(
            cleanup, self._script("in_process"), PEER_SETTINGS=self._peer_settings(), PEER_SOCKET=str(folder / "socket")
        )
        self.connection = cleanup.enter_context(self._accept(listener))

    def _accept(self, listener: Listener) -> Connection:
        waiting: list[Connection] = []
        thread = threading.Thread(target=lambda: waiting.append(listener.accept()), daemon=True)
        thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not waiting:
            self._check_alive(deadline)
            thread.join(0.1)
        return waiting[0]

    def embed(self, items: list[Item]) -> Vectors:
        """Embed in batches of `batch_size`; None takes the one that it was started with."""
        self.connection.send((items, self.batch_size))
        while not self.connection.poll(1.0):
            self._check_alive(float("inf"))
        shape, data = self.connection.recv()
        return np.frombuffer(data, np.float32).reshape(shape)


class RequestPeer(PeerProcess):
    """A server that takes one item a request, as its users' requests arrive."""

    def embed(self, items: list[Item]) -> Vectors:
        """Send a request for every item, many at a time."""
        if len(items) == 1:
            return self._embed_one(items[0])[None]
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return np.stack(list(pool.map(self._embed_one, items)))

    def _embed_one(self, item: Item) -> Vectors:
        raise NotImplementedError


class HttpPeer(RequestPeer):
    """Such a server over HTTP."""

    path = "/embed"

    def _start(self, cleanup: ExitStack) -> None:
        self.port = free_port()
        self._spawn(cleanup, self._command(), PEER_SETTINGS=self._peer_settings(port=self.port))
        self.local = threading.local()
        self._wait()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._check_alive(deadline)
            try:
                self.embed([PROBE])
                return
            except OSError:  # nobody listens yet
                time.sleep(0.2)
            except SystemFailedError:  # it listens, and loads its model
                time.sleep(0.2)

    def _embed_one(self, item: Item) -> Vectors:
        answer = self._post(self._request(item))
        return np.frombuffer(base64.b64decode(self._embedding(answer)), np.float32)

    def _request(self, item: Item) -> dict[str, Any]:
        text, image = item
        return {"text": text, "image": base64.b64encode(image).decode()}

    def _embedding(self, answer: Any) -> str:
        return str(answer["embedding"])

    def _post(self, message: dict[str, Any]) -> Any:
        """Send over this thread's connection, kept open."""
        kept = getattr(self.local, "connection", None)
        for connection in ([kept] if kept else []) + [http.client.HTTPConnection("127.0.0.1", self.port)]:
            try:
                connection.request("POST", self.path, json.dumps(message), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if connection is not kept:  # servers close a connection that was idle for some seconds
                    raise ConnectionError(f"{self.name}: {error!r}") from error
                continue
            self.local.connection = connection
            break
        if answer.status != 200:
            raise SystemFailedError(f"{self.name} answered {answer.status}: {body[:200].decode(errors='replace')}")
        return json.loads(body)


class FastApi(HttpPeer):
    """No batching."""

    name = "FastAPI"
    requirements = "fastapi"

    def _command(self) -> list[str]:
        return self._script("serve_fastapi")


class LitServe(HttpPeer):
    """Dynamic batching."""

    name = "LitServe"
    requirements = "litserve"

    def _command(self) -> list[str]:
        return self._script("serve_litserve")


class BentoMl(HttpPeer):
    """Adaptive batching."""

    name = "BentoML"
    requirements = "bentoml"

    def _command(self) -> list[str]:
        service = "benchmark.peers.serve_bentoml:Embedder"
        command = [str(self._python()), "-m", "bentoml", "serve", service, "--host", "127.0.0.1"]
        return [*command, "--port", str(self.port), "--working-dir", str(ROOT)]

    def _request(self, item: Item) -> dict[str, Any]:
        return {"items": [super()._request(item)]}

    def _embedding(self, answer: Any) -> str:
        return str(answer[0]["embedding"])


class PyTriton(RequestPeer):
    """Triton's dynamic batching before the PyTorch model; one item a request, over gRPC."""

    name = "PyTriton"
    requirements = "pytriton"

    def _start(self, cleanup: ExitStack) -> None:
        import tritonclient.grpc as triton

        self.triton = triton
        port = free_port(2)
        # so that Triton's Python processes load the library of the very Python whose modules they import
        library = str(sysconfig.get_config_var("LIBDIR"))
        settings = self._peer_settings(port=port)
        self._spawn(cleanup, self._script("serve_pytriton"), PEER_SETTINGS=settings, LD_LIBRARY_PATH=library)
        self.client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        cleanup.callback(self.client.close)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._check_alive(deadline)
            with suppress(Exception):  # of many kinds until it is there
                self.embed([PROBE])
                return
            time.sleep(0.2)

    def _embed_one(self, item: Item) -> Vectors:
        text, image = item
        inputs = []
        for name, value in (("text", text.encode()), ("image", image)):
            tensor = self.triton.InferInput(name, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[value]], object))
            inputs.append(tensor)
        answer = self.client.infer("embed", inputs, client_timeout=REQUEST_TIMEOUT_S)
        return np.asarray(answer.as_numpy("embedding")[0], np.float32)


class TextPeer(HttpPeer):
    """A server of text embeddings with OpenAI's wire format, on the language tower alone."""

    has_images = False

    @property
    def tower(self) -> str:
        """The folder with the language tower as a Qwen3 model."""
        return str(self.setup.checkpoint.with_name(f"{self.setup.checkpoint.name}-text"))

    def _request(self, item: Item) -> dict[str, Any]:
        return {"model": "peer", "input": PROMPT.format(item[0]), "encoding_format": "base64"}

    def _embedding(self, answer: Any) -> str:
        return str(answer["data"][0]["embedding"])


class Vllm(TextPeer):
    """vLLM's build for CPUs. Its vision tower needs torchvision."""

    name = "vLLM, text tower"
    requirements = "vllm"
    path = "/v1/embeddings"

    def _command(self) -> list[str]:
        self.settings = {"dtype": "bf16", "batch_size": 256, "max_model_len": 4096}
        command = [str(self._python()), "-m", "vllm.entrypoints.openai.api_server", "--model", self.tower]
        command += ["--served-model-name", "peer", "--runner", "pooling", "--dtype", "bfloat16"]
        command += ["--max-model-len", "4096", "--host", "127.0.0.1", "--port", str(self.port)]
        return ["env", "VLLM_CPU_KVCACHE_SPACE=2", *command]


class Infinity(TextPeer):
    """infinity-emb, which needs transformers 4 and so knows no Qwen3-VL-Embedding."""

    name = "infinity, text tower"
    requirements = "infinity"
    path = "/embeddings"

    def _command(self) -> list[str]:
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[self.setup.dtype]
        command = [str(self._python().with_name("infinity_emb")), "v2", "--model-id", self.tower]
        command += ["--served-model-name", "peer", "--engine", "torch", "--device", "cpu", "--dtype", dtype]
        command += ["--no-bettertransformer", "--batch-size", str(self.setup.batch_size), "--no-model-warmup"]
        return [*command, "--host", "127.0.0.1", "--port", str(self.port)]


def split(items: list[Item]) -> list[list[Item]]:
    """Return packs of items in order, within the bounds of a request."""
    packs: list[list[Item]] = []
    num_tokens = 0
    for item in items:
        size = Image.open(io.BytesIO(item[1])).size if item[1] else (0, 0)
        num_tokens += size[0] * size[1] // PIXELS_OF_A_TOKEN
        if not packs or len(packs[-1]) == PACK_ITEMS or num_tokens > PACK_IMAGE_TOKENS:
            packs.append([])
            num_tokens = size[0] * size[1] // PIXELS_OF_A_TOKEN
        packs[-1].append(item)
    return packs


def free_port(count: int = 1) -> int:
    """Return the first of `count` neighbouring ports of loopback that nobody listens on."""
    while True:
        with ExitStack() as sockets:
            first = sockets.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with suppress(OSError, OverflowError):
                for offset in range(1, count):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
                return port
