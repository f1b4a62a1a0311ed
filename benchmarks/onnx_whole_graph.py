"""The exported graph in ONNX Runtime, and its three parts under ``jfb.solve``, against the engine and ``jfb.predict`` in PyTorch.

    python -m benchmarks.onnx_whole_graph

The contenders alternate in one process on one thread. Times are medians of the CPU time over many rounds; ratios are ratios of
medians. The network is an untrained implicit ResNet for 28×28 images with stages of 24 and 40 channels. The scheduler is loaded
as in the engine process and gets one request at a time, without a socket; ``benchmarks/engine.py`` measures concurrent
requests.
"""

import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import jfb
from app.engine.loading import Loader
from app.engine.running_request import RunningRequest
from app.engine_client.messages import Request
from app.settings import EngineConfig
from jfb import ModelConfig, checkpoint
from jfb.architectures import build
from jfb.export import export
from jfb.onnx.network import OnnxNetwork
from jfb.store import new_version

ARGUMENTS = {"channels": [24, 40], "pool": [2, 2]}
CONFIG = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_resnet", "arguments": ARGUMENTS},
        "input": {"shape": [1, 28, 28], "kind": "image", "low": 0, "high": 255},
        "classes": [str(digit) for digit in range(10)],
    }
)
ROUNDS = 40
CAP = 100


def main() -> None:
    """Print a table."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with new_version(folder, "model") as version:
            checkpoint.save(version, CONFIG, build("implicit_resnet", (1, 28, 28), 10, ARGUMENTS))
        config = EngineConfig(model_store=folder, slots=64, max_waiting_rows=64)
        scheduler = Loader(config, torch.device("cpu")).load("model", 1, "").scheduler
        folder = folder / "model" / "1"
        export(folder, parts=True)
        network, parts = jfb.load(folder).network, OnnxNetwork(folder, CONFIG)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    numbers = itertools.count()

    def serve(inputs: np.ndarray, tolerance: list[float]) -> None:
        request = Request("model", 1, inputs.tobytes(), tolerance, [CAP] * len(inputs), [None] * len(inputs))
        scheduler.submit(RunningRequest(next(numbers), request, inputs.shape[1:]))
        while scheduler.busy:
            scheduler.tick(time.monotonic())

    print("times, and multiples of the engine's throughput")
    print(f"{'batch':>5} {'tolerance':>14} {'iterations':>16} {'engine':>10} {'model.onnx':>18} {'parts':>18} {'predict':>18}")
    for rows, tolerances in ((1, (1e-3, 1e-3)), (32, (1e-3, 1e-3)), (32, (1e-5, 1e-1))):
        inputs = 255 * torch.rand(rows, 1, 28, 28)
        tolerance = torch.from_numpy(np.geomspace(*tolerances, rows, dtype=np.float32))
        feed = {"inputs": inputs.numpy(), "tolerance": tolerance.numpy(), "max_iterations": np.full(rows, CAP)}
        iterations = jfb.predict(network, inputs, tolerance=tolerance, max_iterations=CAP).solution.iterations.float()
        engine_time, whole, three_parts, eager = medians(
            partial(serve, inputs.numpy(), tolerance.tolist()),
            partial(session.run, None, feed),
            partial(jfb.predict, parts, inputs, tolerance=tolerance, max_iterations=CAP),
            partial(jfb.predict, network, inputs, tolerance=tolerance, max_iterations=CAP),
        )
        bounds = " to ".join(f"{bound:g}" for bound in sorted(set(tolerances)))
        counts = f"{iterations.mean():.1f}, max {iterations.max():.0f}"
        times = "".join(f"{1e3 * seconds:>8.2f} ms {engine_time / seconds:>5.2f} x" for seconds in (whole, three_parts, eager))
        print(f"{rows:>5} {bounds:>14} {counts:>16} {1e3 * engine_time:>7.2f} ms {times}")


def medians(*contenders: Callable[[], object]) -> list[float]:
    """Return the median CPU seconds per call of each contender; a round calls each once."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(ROUNDS):
        for contender, mine in zip(contenders, seconds, strict=True):
            start = time.process_time()
            contender()
            mine.append(time.process_time() - start)
    return [statistics.median(mine) for mine in seconds]


if __name__ == "__main__":
    main()
