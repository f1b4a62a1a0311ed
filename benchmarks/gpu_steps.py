"""Time of one iteration on a device, by batch size, by precision, and by how its kernels are launched.

For each batch size: microseconds per iteration of all rows, TFLOP/s, and their share of the measured peak, which is that of a
square matrix product in the same precision. All iterate as the engine does on a GPU: step, residual, and what masks the rows that
have ended. *eager* launches one kernel at a time; *compiled* is ``torch.compile`` of the step; *graph* replays a captured CUDA
graph of one iteration, *graph8* of eight, and *compiled_graph* of one with a compiled step. float32 is without TF32; tf32 lets
the matrix units round their inputs to 10 bits; bfloat16 computes the step in 16 bits between float32 states. Each result is
compared with float64 on the CPU before it is timed. On a CPU, whose cores other programs share, the time is the CPU time divided
by the number of threads.

    python -m benchmarks.gpu_steps                                  # the cifar10 recipe's network, untrained
    python -m benchmarks.gpu_steps model_store/authors_mnist/1 --batches 1,32,1024
"""

import copy
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import jfb
from app.engine.graphs import CudaGraphs, eager
from app.engine.masked import MaskedIterations, Masking
from app.engine.slots import SlotTable
from benchmarks.untrained import ModelOrUntrained
from jfb import ImplicitNetwork, ResidualNorm
from jfb.architectures import build
from jfb.solvers import Memory, Picard
from training.device import choose_device
from training.recipe import load_recipe

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
CALLS_PER_TIMING = 10
"""Iterations between two readings of the clock."""


class Precision(NamedTuple):
    """How numbers are stored and multiplied."""

    dtype: torch.dtype
    tf32: bool
    max_error: float
    """Relative L2 error of one iteration."""


PRECISIONS = {
    "float32": Precision(torch.float32, tf32=False, max_error=1e-5),
    "tf32": Precision(torch.float32, tf32=True, max_error=5e-3),
    "bfloat16": Precision(torch.bfloat16, tf32=False, max_error=3e-2),
}


@dataclass
class Cell:
    """The measurement of one launch mode at one batch size."""

    mode: str
    precision: str
    batch: int
    error: float = float("nan")
    """Of one iteration, relative, against float64."""
    microseconds: float = float("nan")
    """Of an iteration of the whole batch."""
    tflops: float = float("nan")
    of_peak: float = float("nan")
    note: str = ""
    """Why there is no measurement."""


class Iteration:
    """Iterates one batch as the engine does on a GPU (``app/engine/masked.py``), without waiting for it."""

    def __init__(self, network: ImplicitNetwork, state: Tensor, injection: Tensor, mode: str, dtype: torch.dtype) -> None:
        step = torch.compile(network.step, dynamic=False) if mode.startswith("compiled") else network.step

        def evaluate(_: Memory, point: Tensor, injection: Tensor) -> Tensor:
            return step(point.to(dtype), injection.to(dtype)).to(point.dtype)

        graphs = CudaGraphs(state.device) if mode in BLOCKS_OF_GRAPHS else None
        self.times = BLOCKS_OF_GRAPHS.get(mode, 1)
        self.start = state
        self.table = SlotTable(state, injection, {})
        masking = Masking(blocks=(self.times,), capture=graphs or eager)
        self.masked = MaskedIterations(self.table, Picard(), ResidualNorm.RELATIVE, evaluate, first_entries, masking=masking)
        if graphs is not None and graphs.failure is not None:
            raise RuntimeError(graphs.failure)
        self.table.fill(len(state))
        self.table.max_iterations[:] = 2**40  # the tolerance is 0, so no row ends

    def __call__(self) -> None:
        self.masked.start(self.times, judging=False)

    def again(self) -> Tensor:
        """Iterate from the start; return the states."""
        self.table.point.copy_(self.start)
        self()
        return self.masked.next_state


def first_entries(states: Tensor) -> Tensor:
    """In place of a readout, which is not measured."""
    return states.flatten(1)[:, :1]


BLOCKS_OF_GRAPHS = {"graph": 1, "graph8": 8, "compiled_graph": 1}
"""Iterations per graph."""
MODES = ("eager", "compiled", *BLOCKS_OF_GRAPHS)


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Allow or forbid matrix units to round float32 to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def seconds_per_call(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the shortest mean over ``CALLS_PER_TIMING`` calls, repeated for about ``seconds`` seconds."""
    shortest = float("inf")
    until = now(device) + seconds
    while True:
        start = now(device)
        for _ in range(CALLS_PER_TIMING):
            call()
        ended = now(device)
        shortest = min(shortest, (ended - start) / CALLS_PER_TIMING)
        if ended >= until:
            return shortest


def now(device: torch.device) -> float:
    """Return the time in seconds, once all queued work is done."""
    if device.type != "cuda":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_peak(precision: Precision, device: torch.device, seconds: float) -> float:
    """Measure FLOP/s of a square matrix product."""
    side = 8192 if device.type == "cuda" else 256
    one, other = (torch.randn(side, side, device=device, dtype=precision.dtype) for _ in range(2))
    out = torch.empty_like(one)
    with tensor_float(precision.tf32):
        return 2 * side**3 / seconds_per_call(lambda: torch.mm(one, other, out=out), device, seconds)


def measure(
    network: ImplicitNetwork, inputs: Tensor, mode: str, precision: str, peak: float, device: torch.device, seconds: float
) -> Cell:
    """Check one iteration of a batch against float64, then time it.

    Args:
        network: on the CPU, float64, in evaluation mode.
        inputs: on the CPU, float64 ``[batch, *input_shape]``.
        peak: FLOP/s of the precision's matrix products.
    """
    cell = Cell(mode, precision, len(inputs))
    chosen = PRECISIONS[precision]
    few = min(len(inputs), 8)  # rows are independent, so comparing a few is enough
    injection = network.inject(inputs[:few])
    expected = network.step(network.initial_state(injection), injection)
    if mode in BLOCKS_OF_GRAPHS and device.type != "cuda":
        cell.note = "graphs need CUDA"
        return cell
    try:
        on_device = copy.deepcopy(network).to(device, torch.float32)
        if inputs.dim() == 4:
            on_device = on_device.to(memory_format=torch.channels_last)
        there = on_device.inject(inputs.to(device, torch.float32))
        start = on_device.initial_state(there)
        on_device = on_device.to(chosen.dtype)
        with FlopCounterMode(display=False) as counter:
            on_device.step(start.to(chosen.dtype), there.to(chosen.dtype))
        with tensor_float(chosen.tf32):
            iterate = Iteration(on_device, start, there, mode, chosen.dtype)
            for _ in range(iterate.times - 1):
                expected = network.step(expected, injection)
            for _ in range(3):
                iterate()
            found = iterate.again()[:few].cpu().double()
            cell.error = float((found - expected).norm() / expected.norm())
            if not cell.error <= chosen.max_error:
                cell.note = f"wrong: error must be at most {chosen.max_error:g}"
                return cell
            taken = seconds_per_call(iterate, device, seconds) / iterate.times
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        cell.note = str(error).splitlines()[0][:80]
        return cell
    flops = counter.get_total_flops()
    cell.microseconds, cell.tflops, cell.of_peak = 1e6 * taken, flops / taken / 1e12, flops / taken / peak
    return cell


def format_cells(cell: Cell) -> list[str]:
    """Return a row of the table, with empty cells for missing measurements."""
    numbers = [
        (".0e", cell.error),
        (".1f", cell.microseconds),
        (".2f", cell.microseconds / cell.batch),
        (".3g", cell.tflops),
        (".1%", cell.of_peak),
    ]
    return [str(cell.batch), *("" if math.isnan(number) else format(number, style) for style, number in numbers), cell.note]


def write(path: Path, cells: list[Cell]) -> None:
    """Write all cells as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(cells[0])))
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in cells)


def main(
    model: ModelOrUntrained = None,
    batches: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(map(str, BATCHES)),
    precisions: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(PRECISIONS),
    modes: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(MODES),
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    seconds: Annotated[float, typer.Option(min=0.0, help="Duration of each timing.")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
) -> None:
    """Check and time iterations."""
    for name, given, known in (("precisions", precisions, PRECISIONS), ("modes", modes, MODES)):
        if unknown := set(given.split(",")) - set(known):
            raise typer.BadParameter(f"--{name}: must be some of {', '.join(known)} (got {', '.join(sorted(unknown))})")
    on = choose_device(device)
    console = Console(width=110)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    if model:
        checkpoint = jfb.load(model)
        network, shape, high = checkpoint.network, checkpoint.config.input.shape, checkpoint.config.input.high or 1.0
    else:
        recipe, shape, high = load_recipe("cifar10"), (3, 32, 32), 255.0
        network = build(recipe.network.name, shape, 10, recipe.network.arguments)
    network = network.double().eval().requires_grad_(False)
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    cells: list[Cell] = []
    for precision in precisions.split(","):
        peak = matrix_peak(PRECISIONS[precision], on, max(seconds, 0.1))
        for mode in modes.split(","):
            table = Table(
                *("batch", "error", "µs per iteration", "µs per row", "TFLOP/s", "of peak", ""),
                title=f"{model or 'cifar10, untrained'}, {precision}, {mode}; {name}, matrix peak {peak / 1e12:.3g} TFLOP/s",
            )
            for batch in map(int, batches.split(",")):
                torch.compiler.reset()  # otherwise torch.compile falls back to eager after several shapes
                inputs = high * torch.rand(batch, *shape, dtype=torch.float64)
                cells.append(measure(network, inputs, mode, precision, peak, on, seconds))
                table.add_row(*format_cells(cells[-1]))
                if out:
                    write(out, cells)  # each time, so that a run that is interrupted leaves its results
            console.print(table)
    sys.exit(1 if any(cell.note.startswith("wrong") for cell in cells) else 0)


if __name__ == "__main__":
    typer.run(main)
