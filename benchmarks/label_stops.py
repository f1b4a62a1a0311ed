"""Label stops compared with tolerances, in the same engine with the same network and images.

Every image is run once per stop rule, with ``clients`` of them in flight at any time. The rules alternate in one process. Times
are medians over the rounds, of CPU time, because other work on the machine disturbs it less. A label is wrong if it is not that
of the fixed point at 1e-6.

    python -m training import authors mnist_fpn.safetensors --family mnist
    python -m training evaluate authors_mnist --recipe mnist --data DIR
    python -m benchmarks.label_stops model_store/authors_mnist/1 --data DIR
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import jfb
from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Request, Stop
from jfb.label_stop import label_tolerance
from jfb.solvers import Picard
from training.data import read
from training.recipe import DataRecipe

CAP = 1000


def drive(
    scheduler: Scheduler, images: np.ndarray, tolerance: float, stop: Stop, clients: int
) -> tuple[float, float, np.ndarray]:
    """Run every image once; return milliseconds of CPU time per image, mean iterations and the labels."""
    labels, iterations = np.empty(len(images), np.int64), 0
    unsent = iter(range(len(images)))

    def send() -> None:
        number = next(unsent, None)
        if number is not None:
            request = Request("model", 1, images[number].tobytes(), [tolerance], [CAP], [None], stop=stop)
            scheduler.submit(RunningRequest(number, request, images.shape[1:]))

    start = time.process_time()
    for _ in range(clients):
        send()
    while scheduler.busy:
        for request in scheduler.tick(time.perf_counter()):
            labels[request.number] = request.logits[0].argmax()
            iterations += request.iterations[0]
            send()
    return 1000 * (time.process_time() - start) / len(images), iterations / len(images), labels


def main(
    model: Annotated[Path, typer.Argument(help="A version's folder, with a guarantee or a calibration.")],
    data: Annotated[str, typer.Option(help="Source of the images: a hub id, a folder, or sklearn/digits.")],
    split: str = "test",
    images: Annotated[int, typer.Option(help="Number of images per round and stop rule.")] = 1000,
    slots: int = 32,
    clients: int = 64,
    rounds: int = 5,
    threads: int = 1,
) -> None:
    """Print a table with one row per stop rule."""
    torch.set_num_threads(threads)
    console = Console()
    checkpoint = jfb.load(model)
    network, serving = checkpoint.network, checkpoint.config.serving
    label_stop = jfb.LabelStop.of(network, serving)
    if label_stop is None:
        raise typer.BadParameter(f"{model} has no label stops: calibrate them with python -m training evaluate")
    inputs = read(DataRecipe(source=data), [split], console).splits[split].inputs[:images].float()
    reference = jfb.predict(network, inputs, tolerance=1e-6, max_iterations=CAP, residual_norm=serving.residual_norm)
    rules: dict[str, tuple[float, Stop]] = {
        f"tolerance {serving.tolerance:g} (the default)": (serving.tolerance, "tolerance"),
        "tolerance 0.0001": (1e-4, "tolerance"),
        f"label ({label_stop.kind})": (label_tolerance(serving), "label"),
    }
    runs: dict[str, list[tuple[float, float, np.ndarray]]] = {rule: [] for rule in rules}
    for number in range(rounds + 1):  # the first round is a warm-up
        for rule, (tolerance, stop) in rules.items():
            solvers, shape = {"picard": Picard()}, checkpoint.config.input.shape
            batch = RunningBatch(TorchBackend(network), solvers, serving.residual_norm, shape, slots=slots, label_stop=label_stop)
            scheduler = Scheduler(batch, max_waiting_rows=clients)
            run = drive(scheduler, inputs.numpy(), tolerance, stop, clients)
            runs[rule] += [run] if number else []
    title = f"{model}: {len(inputs)} images, {slots} slots, {clients} clients, {rounds} rounds"
    table = Table("stop", "mean iterations", "CPU ms per image", "wrong labels", title=title)
    for rule, found in runs.items():
        wrong = int((found[0][2] != reference.logits.argmax(1).numpy()).sum())
        table.add_row(rule, f"{found[0][1]:.1f}", f"{statistics.median(time for time, *_ in found):.2f}", str(wrong))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
