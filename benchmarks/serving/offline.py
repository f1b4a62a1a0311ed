"""Solvers without HTTP, saturated: samples per second, half loose and half strict.

One process per contender prints one number: ``python -m benchmarks.serving.offline CONTENDER VERSION_FOLDER IMAGES.npy``. Each
sample is injected, solved and read out.

TorchDEQ measures residuals in L2 norms only. Its absolute tolerance is chosen so that plain iteration stops about where the
network's own norm would stop it: the median, over some images, of the L2 norm of their last residual.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import jfb
from benchmarks.serving.requests import LOOSE, STRICT
from jfb import ResidualNorm, residual

Contender = Callable[[jfb.Checkpoint, Path, np.ndarray, np.ndarray], float]
"""From network, its folder, images ``[n, ...]`` and their tolerances to seconds."""

BATCH = 32
CALIBRATED_ON = 64


def engine(checkpoint: jfb.Checkpoint, folder: Path, images: np.ndarray, tolerances: np.ndarray) -> float:
    """The scheduler with 64 clients; it draws its own tolerances, also half loose and half strict."""
    from benchmarks.engine import ComputeOptions, drive, make_scheduler

    scheduler = make_scheduler(folder, "iteration", None, 64, ComputeOptions(precision="auto"))
    return len(images) / drive(scheduler, images, 64).requests_per_second


def eager(checkpoint: jfb.Checkpoint, folder: Path, images: np.ndarray, tolerances: np.ndarray) -> float:
    """PyTorch as published, one at a time."""
    from benchmarks.serving.rivals.lockstep import Lockstep

    network = Lockstep(folder)
    began = time.perf_counter()
    for image, tolerance in zip(images, tolerances.tolist(), strict=True):
        network([{"inputs": image[None], "tolerance": tolerance}])
    return time.perf_counter() - began


def lockstep(checkpoint: jfb.Checkpoint, folder: Path, images: np.ndarray, tolerances: np.ndarray) -> float:
    """PyTorch as published, in batches that iterate until their slowest row has converged."""
    from benchmarks.serving.rivals.lockstep import Lockstep

    network = Lockstep(folder)
    bodies = [{"inputs": image[None], "tolerance": one} for image, one in zip(images, tolerances.tolist(), strict=True)]
    began = time.perf_counter()
    for first in range(0, len(bodies), BATCH):
        network(bodies[first : first + BATCH])
    return time.perf_counter() - began


def onnxruntime(checkpoint: jfb.Checkpoint, folder: Path, images: np.ndarray, tolerances: np.ndarray) -> float:
    """ONNX Runtime, one at a time, as in the endpoint."""
    from benchmarks.serving.rivals.fastapi_onnxruntime import OneAtATime

    network = OneAtATime(folder)
    began = time.perf_counter()
    for image, tolerance in zip(images, tolerances.tolist(), strict=True):
        network(image[None], tolerance)
    return time.perf_counter() - began


def torchdeq(solver: str, batch: int) -> Contender:
    """A solver of TorchDEQ, in batches that iterate until their slowest row has converged."""

    @torch.inference_mode()
    def contender(checkpoint: jfb.Checkpoint, folder: Path, images: np.ndarray, tolerances: np.ndarray) -> float:
        from torchdeq import get_deq

        network, norm = checkpoint.network.eval(), checkpoint.config.serving.residual_norm
        inputs = torch.from_numpy(images)
        deq = get_deq(f_solver=solver, f_max_iter=200, f_stop_mode="abs")
        deq.eval()
        as_l2 = {tolerance: _in_l2(checkpoint, inputs[:CALIBRATED_ON], tolerance, norm) for tolerance in (LOOSE, STRICT)}
        began = time.perf_counter()
        for rows, limits in zip(inputs.split(batch), torch.from_numpy(tolerances).split(batch), strict=True):
            injection = network.inject(rows)
            start = network.initial_state(injection)

            def step(state: torch.Tensor, injection: torch.Tensor = injection) -> torch.Tensor:
                return network.step(state, injection)

            states, _ = deq(step, start, solver_kwargs={"f_tol": as_l2[float(limits.min())]})
            network.readout(states[-1])
        return time.perf_counter() - began

    return contender


def _in_l2(checkpoint: jfb.Checkpoint, inputs: torch.Tensor, tolerance: float, norm: ResidualNorm) -> float:
    network = checkpoint.network
    injection = network.inject(inputs)
    state = network.initial_state(injection)
    last = torch.full((len(inputs),), torch.nan)
    while last.isnan().any():
        previous, state = state, network.step(state, injection)
        first = last.isnan() & (residual(previous, state, norm) <= tolerance)
        last[first] = residual(previous, state, ResidualNorm.ABSOLUTE)[first]
    return float(last.median())


CONTENDERS: dict[str, Contender] = {
    "jfb's engine core": engine,
    "one at a time, eager": eager,
    "one at a time, ONNX Runtime": onnxruntime,
    "batches of 32, eager": lockstep,
    "TorchDEQ, fixed-point iteration, one at a time": torchdeq("fixed_point_iter", 1),
    "TorchDEQ, Anderson, one at a time": torchdeq("anderson", 1),
    "TorchDEQ, fixed-point iteration, batches of 32": torchdeq("fixed_point_iter", BATCH),
    "TorchDEQ, Anderson, batches of 32": torchdeq("anderson", BATCH),
}
OURS = "jfb's engine core"
"""The one that needs this project's own environment; the others run in the rivals'."""


def main(name: str, folder: str, file: str) -> None:
    """Warm up, and print samples per second."""
    torch.set_num_threads(1)
    checkpoint, images = jfb.load(Path(folder)), np.load(file)
    tolerances = np.random.default_rng(0).permutation(np.resize([LOOSE, STRICT], len(images)))
    CONTENDERS[name](checkpoint, Path(folder), images[: 2 * BATCH], tolerances[: 2 * BATCH])
    print(len(images) / CONTENDERS[name](checkpoint, Path(folder), images, tolerances))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folder", help="version folder")
    parser.add_argument("images", help=".npy file")
    arguments = parser.parse_args()
    main(arguments.contender, arguments.folder, arguments.images)
