"""Soak test: random requests and failures against a real server, from a seed, and a check of every response.

Clients send valid, warm-started, streamed, slow, invalid, hostile and huge requests, some of them in pieces; some clients
disconnect early, close their half of the connection, or never read. From another address comes a flood of rows with deadlines,
and from a third one a bystander sends one row at a time. Meanwhile, at random times, the engine is killed, versions are
published, replaced, broken and removed, and the server rescans its store. The requirements are:

* Each request gets exactly one response, and its connection never breaks.
* A request that arrives in pieces within the body timeout is answered like any other. One that does not is answered 408, and its
  connection is closed even if its client keeps sending.
* Every 200 is correct: it is what ``jfb.predict`` computes offline with the version that the response names.
* The bystander never finds the queue full, and waits at most five seconds for an answer.
* Invalid and huge requests get their own 4xx, or 429 while the queue is full. The only 5xx are 503 with Retry-After while no
  engine is ready, and 504 for a deadline before the first iteration.
* No row is left in the server, and its memory does not grow.

    python -m benchmarks.soak --seconds 180 --seed 1
    python -m benchmarks.soak --seconds 180 --seed 1 --http-workers 2

It exits with status 1 and lists what is wrong if a requirement is not met.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import httpx
import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import jfb
from benchmarks.processes import children
from jfb import ModelConfig, checkpoint
from jfb.architectures import build
from jfb.architectures.implicit_mlp import ImplicitMLP
from jfb.store import list_versions, new_version

CLIENTS = 24
FLOOD_ADDRESS, BYSTANDER_ADDRESS = "127.0.0.2", "127.0.0.3"
BYSTANDER_SECONDS = 5.0
IMAGES = np.random.default_rng(0).integers(0, 17, (64, 1, 8, 8)).astype(np.float32)
TOLERANCES = (1e-1, 1e-2, 1e-4)
CAP = 300
BODY_TIMEOUT = 4.0
SETTINGS = {
    "device": "cpu",
    "threads": 1,
    "default_model": "digits",
    "slots": 16,
    "max_waiting_rows": 48,
    "max_rows_per_request": 32,
    "max_body_bytes": 100_000,
    "body_timeout": BODY_TIMEOUT,
    "max_iterations_limit": 100_000,
    "session_bytes": 2**20,
    "drain_seconds": 0,
    "log_level": "warning",
}
PICTURES = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_resnet", "arguments": {"mean": 8.0, "std": 8.0, "channels": [8], "pool": [2]}},
        "input": {"shape": [1, 8, 8], "kind": "image", "low": 0, "high": 16},
        "classes": [str(digit) for digit in range(10)],
        "serving": {"tolerance": 1e-3, "max_iterations": CAP},
    }
)
ENDLESS = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_mlp", "arguments": {"width": 8, "contraction": 0.999999, "slope": 1.0}},
        "input": {"shape": [4], "kind": "vector"},
        "classes": ["no", "yes"],
    }
)
INVALID: list[tuple[int, dict[str, Any]]] = [
    (400, {"content": b"{"}),
    (422, {"json": {"inputs": [[1, 2, 3]]}}),
    (422, {"json": {"inputs": [[[[17.0] * 8] * 8]]}}),
    (422, {"json": {"inputs": IMAGES[:1].tolist(), "tolerance": -1}}),
    (422, {"json": {"inputs": IMAGES[:1].tolist(), "session": ""}}),
    (422, {"json": {"images": ["bm8gaW1hZ2U="]}}),
    (413, {"json": {"inputs": IMAGES[:33].tolist()}}),
    (413, {"content": b" " * 100_001}),
]
"""Invalid requests, with the expected status."""


def _npy(shape: str, version: bytes = b"\x01\x00") -> bytes:
    """A .npy file of 64 zeros whose header states a shape and a version."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + bytes(256)


JSON, NPY, PNG = "application/json", "application/x-npy", "image/png"
PREDICT, INFER = "/predict", "/v2/models/digits/infer"
HOSTILE: list[tuple[str, str, bytes]] = [
    (PREDICT, JSON, b'{"inputs": [' + b"[]," * 30_000 + b"NaN]}"),
    (PREDICT, JSON, b"[" * 90_000),
    (PREDICT, JSON, b'{"inputs": ' + b'{"a": ' * 10_000),
    (PREDICT, JSON, b'{"inputs": [[[[1]]]], "deadline_ms": 1e12}'),
    (PREDICT, JSON, b'{"inputs": [[[[1]]]], "max_iterations": 1' + b"0" * 5000 + b"}"),
    (PREDICT, JSON, b'{"images": ["' + b"A" * 80_000 + b'"]}'),
    (PREDICT, NPY, _npy("(True, 1, 8, 8)")),
    (PREDICT, NPY, _npy("(1, 1, 8, 8)", b"\x09\x09")),
    (PREDICT, NPY, _npy("(10**9, 1, 8, 8)")),
    (PREDICT, NPY, _npy("(1000000000, 1, 8, 8)")),
    (PREDICT, PNG, b"\x89PNG\r\n\x1a\n" + bytes(1000)),
    (INFER, JSON, b'{"inputs": [], "parameters": {"timeout": 1' + b"0" * 320 + b"}}"),
    (INFER, JSON, b'{"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1' + b"0" * 4300 + b', 1, 8, 8], "data": []}]}'),
]
"""Bodies that once cost a server much, or were answered 500: path, content type and content. Each is answered 4xx."""


@dataclass
class Answered:
    """The content of a 200, to be checked."""

    version: int
    images: list[int]
    tolerance: float
    is_warm: bool
    predictions: list[dict[str, Any]]


@dataclass
class Soak:
    """A server under test, and what has happened so far."""

    url: str
    store: Path
    process: "subprocess.Popen[bytes]"
    random: random.Random
    sent: Counter[str] = field(default_factory=Counter)
    responses: Counter[tuple[str, str]] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    answered: list[Answered] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    networks: dict[int, jfb.Checkpoint] = field(default_factory=dict)
    resident: dict[str, list[float]] = field(default_factory=lambda: {"http": [], "engine": []})

    # The clients' requests.

    async def predict(self, client: httpx.AsyncClient) -> None:
        """Send a valid request."""
        images, tolerance = self._images(), self.random.choice(TOLERANCES)
        body = {"inputs": IMAGES[images].tolist(), "tolerance": tolerance, "max_iterations": CAP}
        self._record("predict", await client.post("/predict", json=body), images, tolerance, is_warm=False)

    async def warm(self, client: httpx.AsyncClient) -> None:
        """Send a request of one of a few sessions."""
        images = self._images()
        body = {"inputs": IMAGES[images].tolist(), "tolerance": 1e-4, "max_iterations": CAP}
        body["session"] = f"{self.random.randrange(8)}"
        self._record("warm", await client.post("/predict", json=body), images, 1e-4, is_warm=True)

    async def stream(self, client: httpx.AsyncClient) -> None:
        """Send a valid request for an event stream."""
        images = self._images()
        body = {"inputs": IMAGES[images].tolist(), "tolerance": 1e-2, "max_iterations": CAP}
        response = await client.post("/predict", json=body, headers={"accept": "text/event-stream"})
        if response.status_code != 200:
            self._record("stream", response, images, 1e-2, is_warm=False)
            return
        name, data = response.text.removesuffix("\n\n").rpartition("\n\n")[2].split("\n")
        if name == "event: error":
            self.responses["stream", "error event"] += 1
            return
        self._check("stream", name == "event: answer", f"the last event is {name}")
        self.responses["stream", "200"] += 1
        content = json.loads(data.removeprefix("data: "))
        self.answered.append(Answered(content["version"], images, 1e-2, False, content["predictions"]))

    async def slow(self, client: httpx.AsyncClient) -> None:
        """Send a request that takes longer than its deadline."""
        body = {
            "inputs": [[0, 1, 2, 3]],
            "tolerance": 1e-30,
            "max_iterations": 100_000,
            "deadline_ms": self.random.choice([1, 50]),
        }
        response = await client.post("/models/slow/predict", json=body)
        self._record("slow", response, allowed=(504,))
        if response.status_code == 200:
            self._check("slow", response.json()["predictions"][0]["status"] == "deadline", response.text)

    async def bad(self, client: httpx.AsyncClient) -> None:
        """Send a request that the HTTP worker rejects."""
        status, content = self.random.choice(INVALID)
        response = await client.post("/predict", headers={"content-type": "application/json"}, **content)
        self.responses["bad", str(response.status_code)] += 1
        if response.status_code != 429:  # a full queue rejects before the body is read
            is_expected = response.status_code == status and "error" in response.json()
            self._check("bad", is_expected, f"must be {status} (got {response.status_code}: {response.text})")

    async def trickle(self, client: httpx.AsyncClient) -> None:
        """Send a valid request in pieces, the last of them in time."""
        images, tolerance = self._images(), self.random.choice(TOLERANCES)
        body = json.dumps({"inputs": IMAGES[images].tolist(), "tolerance": tolerance, "max_iterations": CAP}).encode()
        whole = _post("/predict", len(body)) + body
        cuts = sorted(self.random.sample(range(1, len(whole)), 5))
        async with self._connected() as (reader, writer):
            for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
                await _write(writer, whole[begin:end])
                await asyncio.sleep(self.random.random() * BODY_TIMEOUT / 10)
            self._record("trickle", await _read(reader), images, tolerance)

    async def late(self, client: httpx.AsyncClient) -> None:
        """Keep sending headers or a body beyond the timeout, and read the response only then; or send nothing at all."""
        begin = self.random.choice([b"", b"POST /predict HTTP/1.1\r\nx-more: ", _post("/predict", 1000)])
        async with self._connected() as (reader, writer):
            if not begin:
                self._check("late", await reader.read() == b"", "a connection that sent nothing got a response")
                self.responses["late", "closed"] += 1
                return
            await _write(writer, begin)
            until = time.monotonic() + 1.3 * BODY_TIMEOUT
            while time.monotonic() < until:
                await _write(writer, b"a")
                await asyncio.sleep(BODY_TIMEOUT / 20)
            response = await _read(reader)
            self._record("late", response, allowed=(408,))
            self._check("late", response.status_code in (408, 429, 503), f"{response.status_code}: {response.text}")
            self._check("late", response.status_code != 408 or await reader.read() == b"", "not closed after 408")

    async def leave(self, client: httpx.AsyncClient) -> None:
        """Disconnect in the middle of a long computation."""
        body = json.dumps({"inputs": [[0, 1, 2, 3]] * 4, "tolerance": 1e-30, "max_iterations": 100_000}).encode()
        async with self._connected() as (_, writer):
            await _write(writer, _post("/models/slow/predict", len(body)))
            await _write(writer, body[: self.random.choice([len(body), len(body) // 2])])
            await asyncio.sleep(self.random.random() * 0.2)
        self.responses["leave", "left"] += 1

    async def hostile(self, client: httpx.AsyncClient) -> None:
        """Send a body that is made to do harm."""
        path, kind, content = self.random.choice(HOSTILE)
        response = await client.post(path, content=content, headers={"content-type": kind})
        self.responses["hostile", str(response.status_code)] += 1
        if response.status_code not in (429, 503):
            is_expected = 400 <= response.status_code < 500 and "error" in response.json()
            self._check("hostile", is_expected, f"{path} {content[:60]!r}: {response.status_code}: {response.text[:200]}")

    async def flood(self, client: httpx.AsyncClient) -> None:
        """Send as many rows as are allowed, with deadlines, from another address, and leave before they are computed."""
        rows = IMAGES[:32].tolist()
        body = json.dumps({"inputs": rows, "tolerance": 1e-30, "max_iterations": 2000, "deadline_ms": 3_600_000}).encode()
        async with self._connected(FLOOD_ADDRESS) as (_, writer):
            await _write(writer, _post("/predict", len(body)) + body)
            await asyncio.sleep(self.random.random())
        self.responses["flood", "left"] += 1

    async def deaf(self, client: httpx.AsyncClient) -> None:
        """Ask for a long event stream, and never read it."""
        body = json.dumps({"inputs": [[0, 1, 2, 3]] * 4, "tolerance": 1e-30, "max_iterations": 100_000}).encode()
        head = _post("/models/slow/predict", len(body)).replace(b"host:", b"accept: text/event-stream\r\nhost:")
        async with self._connected() as (_, writer):
            cast(asyncio.Transport, writer.transport).pause_reading()
            await _write(writer, head + body)
            await asyncio.sleep(2 * self.random.random())
            writer.transport.abort()
        self.responses["deaf", "left"] += 1

    async def half_close(self, client: httpx.AsyncClient) -> None:
        """Close the sending half of the connection after a whole request, which is answered nevertheless."""
        images, tolerance = self._images(), self.random.choice(TOLERANCES)
        body = json.dumps({"inputs": IMAGES[images].tolist(), "tolerance": tolerance, "max_iterations": CAP}).encode()
        async with self._connected() as (reader, writer):
            await _write(writer, _post("/predict", len(body)) + body)
            writer.write_eof()
            self._record("half_close", await _read(reader), images, tolerance)

    async def watch_bystander(self, until: float) -> None:
        """Send one row at a time from an address of its own: whatever the others do, it is answered soon."""
        transport = httpx.AsyncHTTPTransport(local_address=BYSTANDER_ADDRESS)
        async with httpx.AsyncClient(base_url=self.url, timeout=60, transport=transport) as client:
            while time.monotonic() < until:
                images, began = [self.random.randrange(len(IMAGES))], time.monotonic()
                self.sent["bystander"] += 1
                body = {"inputs": IMAGES[images].tolist(), "tolerance": 1e-2, "max_iterations": CAP}
                response = await client.post("/predict", json=body)
                self._record("bystander", response, images, 1e-2)
                self._check("bystander", response.status_code in (200, 503), f"{response.status_code}: {response.text}")
                seconds = time.monotonic() - began
                self._check("bystander", seconds < BYSTANDER_SECONDS, f"answered after {seconds:.1f} s")
                await asyncio.sleep(0.05)

    # Events on the server.

    async def kill(self) -> None:
        """Kill the engine process."""
        os.kill(self.engine(), signal.SIGKILL)

    async def publish(self) -> None:
        """Publish a new version, and remove the oldest."""
        self.add_version()
        gone = self.store / "digits" / ".gone"  # renamed first: a half-deleted folder is a broken version
        (self.store / "digits" / str(list_versions(self.store / "digits")[0])).rename(gone)
        shutil.rmtree(gone)
        self.process.send_signal(signal.SIGHUP)

    async def touch(self) -> None:
        """Change the modification times of the weights, so that they are loaded again."""
        for path in (self.store / "digits").glob("*/model.safetensors"):
            os.utime(path)
        self.process.send_signal(signal.SIGHUP)

    async def break_one(self) -> None:
        """Add a version that cannot be loaded, and remove it after a second."""
        folder = self.store / "digits" / "999999"
        good = self.store / "digits" / str(list_versions(self.store / "digits")[-1])
        shutil.copytree(good, folder)
        config, weights = folder / "config.json", folder / "model.safetensors"
        giant = json.loads(config.read_text())
        giant["architecture"]["arguments"]["blocks"] = 200_000

        def replace(path: Path, make: Callable[[Path], None]) -> None:
            path.unlink()
            make(path)

        breaks: list[Callable[[], object]] = [
            lambda: config.write_text("{"),
            lambda: config.write_text(json.dumps(giant)),
            lambda: replace(config, lambda path: path.symlink_to("nowhere")),
            lambda: replace(config, lambda path: path.symlink_to("config.json")),
            lambda: replace(config, lambda path: os.mkfifo(path)),
            lambda: replace(weights, lambda path: os.mkfifo(path)),
            lambda: os.truncate(weights, 1000),
        ]
        self.random.choice(breaks)()
        for name in ("1" * 20, os.fsdecode(b"\xff")):
            (self.store / "digits" / name).mkdir(exist_ok=True)
        self.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(1)
        shutil.rmtree(folder)

    def add_version(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.random.getrandbits(32))
            network = build("implicit_resnet", (1, 8, 8), 10, PICTURES.architecture.arguments)
        with new_version(self.store, "digits") as folder:
            checkpoint.save(folder, PICTURES, network)
        version = list_versions(self.store / "digits")[-1]
        self.networks[version] = jfb.Checkpoint(PICTURES, network.eval())

    # The course of a test.

    async def client(self, until: float, client: httpx.AsyncClient) -> None:
        """Run one client, which sends random requests one after the other."""
        kinds: list[tuple[Callable[[httpx.AsyncClient], Awaitable[None]], float]]
        kinds = [(self.predict, 10), (self.warm, 4), (self.stream, 2), (self.slow, 2), (self.bad, 4), (self.leave, 2)]
        kinds += [(self.hostile, 2), (self.half_close, 1), (self.flood, 1)]
        kinds += [(self.trickle, 0.5), (self.late, 0.25), (self.deaf, 0.5)]  # these take seconds
        while time.monotonic() < until:
            (kind,) = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            name = kind.__name__
            self.sent[name] += 1
            try:
                await kind(client)
            except (httpx.HTTPError, OSError, asyncio.IncompleteReadError) as error:
                self.wrong.append(f"{name}: no response: {error!r}")
            await asyncio.sleep(self.random.random() * 0.02)

    async def disturb(self, until: float) -> None:
        """Cause a random event every few seconds."""
        while time.monotonic() < until - 3:
            await asyncio.sleep(1 + self.random.random() * 3)
            (event,) = self.random.choices([self.kill, self.publish, self.touch, self.break_one], [1, 10, 4, 4])
            with suppress(OSError):  # no engine is running at the moment
                await event()
                self.events[event.__name__] += 1

    async def sample_memory(self, until: float) -> None:
        """Sample the memory of the supervisor and the HTTP workers together, and of the engine."""
        while time.monotonic() < until:
            with suppress(OSError):
                engine = self.engine()
                for name, pids in (
                    ("http", [self.process.pid, *children(self.process.pid, "app.cli.http_worker")]),
                    ("engine", [engine]),
                ):
                    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
                    self.resident[name].append(pages * os.sysconf("SC_PAGESIZE") / 2**20)
            await asyncio.sleep(0.25)

    def check_predictions(self) -> None:
        """Compare every 200 with ``jfb.predict``."""
        expected: dict[tuple[int, float], jfb.Prediction] = {}
        for one in track(self.answered, "checking", console=Console(stderr=True), transient=True):
            key = one.version, one.tolerance
            if key not in expected:
                network = self.networks[one.version].network
                expected[key] = jfb.predict(network, torch.from_numpy(IMAGES), tolerance=one.tolerance, max_iterations=CAP)
            offline = expected[key]
            for image, row in zip(one.images, one.predictions, strict=True):
                iterations = int(offline.solution.iterations[image])
                apart = float(np.abs(np.array(row["probabilities"]) - offline.logits[image].double().softmax(0).numpy()).max())
                if one.is_warm:  # another start has the same fixed point, within the tolerance
                    is_correct = row["status"] == "converged" and row["residual"] <= one.tolerance and apart < 0.01
                elif row["iterations"] == iterations:
                    is_correct = row["status"] == offline.solution.status[image] and apart < 1e-5
                else:  # one more or less, where rounding decides whether the residual meets the tolerance
                    is_correct = abs(row["iterations"] - iterations) == 1 and apart < one.tolerance
                self._check(
                    "prediction", is_correct, f"{key}, image {image}: {row}, offline {iterations} iterations, {apart} apart"
                )

    def check_memory(self) -> None:
        """Check that the memory at the end of the run is at most 1.1 times that of its second quarter."""
        for name, values in self.resident.items():
            quarter = len(values) // 4
            early, late = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
            self._check("memory", late < 1.1 * early, f"{name}: {early:.0f} MiB in the second quarter, {late:.0f} MiB at the end")

    def _images(self) -> list[int]:
        return self.random.sample(range(len(IMAGES)), self.random.choice([1, 1, 1, 2, 8]))

    def _record(
        self,
        kind: str,
        response: httpx.Response,
        images: list[int] | None = None,
        tolerance: float = 0.0,
        *,
        is_warm: bool = False,
        allowed: tuple[int, ...] = (),
    ) -> None:
        self.responses[kind, str(response.status_code)] += 1
        if response.status_code == 200:
            if images is not None:
                content = response.json()
                self.answered.append(Answered(content["version"], images, tolerance, is_warm, content["predictions"]))
        elif response.status_code in (429, 503):
            self._check(kind, int(response.headers.get("retry-after", 0)) >= 1, f"no Retry-After: {response.text}")
        else:
            self._check(kind, response.status_code in allowed, f"{response.status_code}: {response.text}")

    def _check(self, what: str, holds: bool, message: str) -> None:
        if not holds:
            self.wrong.append(f"{what}: {message}")

    @asynccontextmanager
    async def _connected(self, address: str = "127.0.0.1") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a plain connection to the server from an address of this machine."""
        url = httpx.URL(self.url)
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(url.host, url.port, local_addr=(address, 0))
            try:
                yield reader, writer
            finally:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    def engine(self) -> int:
        """Return the engine's process id.

        Raises:
            ProcessLookupError: if no engine is running at the moment.
        """
        for child in children(self.process.pid, "app.engine"):
            return child
        raise ProcessLookupError("no engine is running")


def _post(path: str, length: int) -> bytes:
    """Return the head of a request."""
    lines = (f"POST {path} HTTP/1.1", "host: soak", "content-type: application/json", f"content-length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> httpx.Response:
    """Read the next response, after interim ones (100 Continue)."""
    status, lines = "HTTP/1.1 100", list[str]()
    while status.startswith("HTTP/1.1 1"):
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().removesuffix("\r\n\r\n").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return httpx.Response(
        int(status.split(" ")[1]), headers=headers, content=await reader.readexactly(int(headers["content-length"]))
    )


@asynccontextmanager
async def running(store: Path, log: Path, seed: int, http_workers: int = 1) -> AsyncIterator[Soak]:
    """Start a server of the store, with its log in a file, and wait until it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {**SETTINGS, "model_store": store, "port": port, "http_workers": http_workers}
    variables = {f"JFB_{name.upper()}": str(value) for name, value in settings.items()}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "app"], env={**os.environ, **variables}, stdout=output, stderr=output)
    try:
        soak = Soak(f"http://127.0.0.1:{port}", store, process, random.Random(seed))
        soak.add_version()
        soak.add_version()
        await ready(soak.url)
        yield soak
    finally:
        process.terminate()
        process.wait(30)


async def ready(url: str) -> None:
    """Wait until the server is ready."""
    async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(120):
        while True:
            with suppress(httpx.TransportError):
                if (await client.get("/v2/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.1)


async def run(seconds: float, seed: int, folder: Path, http_workers: int = 1) -> Soak:
    """Run the clients and the events against a server, and check its responses."""
    store = folder / "store"
    network = build("implicit_mlp", (4,), 2, ENDLESS.architecture.arguments)
    assert isinstance(network, ImplicitMLP)
    nn.init.orthogonal_(network.latent.weight)  # a rotation never converges, so each row takes max_iterations
    with new_version(store, "slow") as version:
        checkpoint.save(version, ENDLESS, network)
    async with running(store, folder / "log", seed, http_workers) as soak:
        until = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=soak.url, timeout=60, limits=limits) as client:
            clients = [soak.client(until, client) for _ in range(CLIENTS)]
            await asyncio.gather(*clients, soak.watch_bystander(until), soak.disturb(until), soak.sample_memory(until))
            await ready(soak.url)
            await asyncio.sleep(1)  # so that the engine drops the rows of the last clients that disconnected
            for line in (await client.get("/metrics")).text.splitlines():
                if line.startswith(("jfb_engine_active_rows{", "jfb_engine_waiting_rows{")):
                    soak._check("rows", line.endswith(" 0.0"), f"rows left: {line}")
            again = await client.post("/predict", json={"inputs": IMAGES[:1].tolist()})
            soak._check("end", again.status_code == 200, f"status {again.status_code}: {again.text}")
    soak._check("exit", soak.process.returncode == 0, f"the server exited with status {soak.process.returncode}")
    answered = Counter[str]()
    for (kind, _), count in soak.responses.items():
        answered[kind] += count
    soak._check("count", answered == soak.sent, f"sent {dict(soak.sent)}, answered {dict(answered)}")
    for word in ("unhandled exception", "Traceback"):
        soak._check("log", word not in (folder / "log").read_text(), f"the log has {word!r}, see {folder / 'log'}")
    soak.check_predictions()
    soak.check_memory()
    return soak


def report(soak: Soak, console: Console) -> None:
    """Print requests, events, memory and what is wrong."""
    table = Table("request", "response", "count")
    for (kind, status), count in sorted(soak.responses.items()):
        table.add_row(kind, status, str(count))
    console.print(table)
    rows = sum(len(one.images) for one in soak.answered)
    console.print(
        f"{sum(soak.sent.values())} requests; {len(soak.answered)} responses with {rows} rows were compared with jfb.predict"
    )
    console.print("events: " + ", ".join(f"{name} {count}" for name, count in sorted(soak.events.items())))
    for name, values in soak.resident.items():
        console.print(f"memory of {name}: {min(values):.0f} to {max(values):.0f} MiB, {values[-1]:.0f} MiB at the end")
    for wrong in soak.wrong[:20]:
        console.print(f"[red]wrong[/red] {wrong}", highlight=False)
    console.print(f"{len(soak.wrong)} wrong" if soak.wrong else "nothing wrong")


def main(
    seconds: Annotated[float, typer.Option(min=5, help="Duration of the test.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the requests and events.")] = 0,
    http_workers: Annotated[int, typer.Option(min=1, help="HTTP worker processes of the server.")] = 1,
) -> None:
    """Run a soak test against a server of small models."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="jfb-soak-"))
    try:
        soak = asyncio.run(run(seconds, seed, folder, http_workers))
        report(soak, Console(width=120))
        if soak.wrong:
            Console(stderr=True).print((folder / "log").read_text()[-5000:], markup=False)
            sys.exit(1)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
