"""Acceleration: a stored model becomes a new version with the same weights, a learned solver and perhaps a learned start."""

import math
import shutil
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from jfb import Checkpoint, ImplicitNetwork, ModelConfig
from jfb.checkpoint import save
from jfb.solvers import Mixing
from jfb.store import CURVES, METRICS, SAMPLES, new_version
from jfb.store import HISTORY as TRAINING_HISTORY
from training.acceleration.fit import fit_mixing
from training.acceleration.start import fit_start
from training.data import Data, Split
from training.evaluation.evaluate import TOLERANCES, Evaluation, evaluate
from training.evaluation.solver_times import WITHOUT_START, SolverTimes, time_solvers
from training.reports.evaluation_report import write_evaluation_report
from training.reports.model_card import write_card
from training.store import with_serving

KEPT_FILES = (METRICS, SAMPLES, TRAINING_HISTORY, CURVES)
"""Of the version that is accelerated: its weights are the same, and so is what they say."""


MAX_START_RATIO = 0.97
"""A learned start is kept if rows take at most this fraction of their time without it."""
EVALUATION_SECONDS = 20.0
"""Of processor time, about, for the evaluation of an accelerated version."""
EVALUATION_COST = 6.0
"""Of evaluating an input of each part, in times of solving it with every solver at the tightest tolerance."""
MIN_EVALUATED = 1000
"""Inputs of each part."""


@dataclass(frozen=True)
class Accelerated:
    """A network with a learned solver, and whether that pays."""

    config: ModelConfig
    """The model's, with mixing as the default solver if it is clearly the fastest, and with a learned start if that pays."""
    mixing: Mixing
    seconds: float
    """That the fit took."""
    times: SolverTimes
    """Of every solver, on the validation part; measured with the solver that was the default before."""
    start_ratio: float | None
    """What the new learned start was judged by, as in ``SolverTimes``; None if none was to be trained."""

    @property
    def pays(self) -> bool:
        """Whether mixing became the default."""
        return self.config.serving.solver == "mixing"


def accelerate_network(
    network: ImplicitNetwork, config: ModelConfig, data: Data, *, start: bool = False, device: torch.device, console: Console
) -> Accelerated:
    """Fit mixing to a network on the training part's inputs, and make it the default if it takes clearly less time.

    Args:
        network: in evaluation mode, on the device. With ``start``, its learned start is replaced: by a new one if that takes
            clearly less time than none, else by none.
        start: whether to train a learned start, too.

    Raises:
        ModelError: for a network that mixing is not for.
    """
    began = time.monotonic()
    inputs, timed, tightest = data.train.inputs, data.validation.inputs, min(TOLERANCES)
    if start:
        network.learned_start, config = None, config.model_copy(update={"learned_start": None})
    mixing = fit_mixing(network, inputs, device=device, console=console)
    times, start_ratio = None, None
    if start:
        network.learned_start, spec = fit_start(network, config.serving, inputs, mixing, device=device, console=console)
        started = fit_mixing(network, inputs, refine=mixing, device=device, console=console)
        times = time_solvers(network, config, timed, tightest, mixing=started, mixing_without_start=mixing, device=device)
        start_ratio = times.start_ratio
        if start_ratio is not None and start_ratio <= MAX_START_RATIO:
            mixing, config = started, config.model_copy(update={"learned_start": spec})
        else:
            network.learned_start, times = None, None
    seconds = time.monotonic() - began
    times = times or time_solvers(network, config, timed, tightest, mixing=mixing, device=device)
    faster = times.recommended == "mixing"
    return Accelerated(with_serving(config, solver="mixing") if faster else config, mixing, seconds, times, start_ratio)


def accelerate_version(
    checkpoint: Checkpoint,
    folder: Path,
    data: Data,
    store: Path,
    *,
    start: bool = False,
    device: torch.device,
    console: Console,
) -> tuple[Path, Accelerated, Evaluation]:
    """Accelerate a stored model and publish the result as its next version.

    It is evaluated on as many inputs of each part as there is time for; ``python -m training evaluate`` takes all of them.

    Args:
        checkpoint: what ``folder`` holds, on the device.
        folder: the version's.
        start: whether to train a learned start, too.

    Returns:
        The new version's folder, what was fitted, and the evaluation of the new version.

    Raises:
        ModelError: for a network that mixing is not for, and for data that the model is not for.
    """
    network = checkpoint.network
    accelerated = accelerate_network(network, checkpoint.config, data, start=start, device=device, console=console)
    times = accelerated.times
    evaluation = evaluate(
        network,
        accelerated.config,
        _thinned(data, times),
        mixing=accelerated.mixing,
        solver_times=times,
        device=device,
        console=console,
    )
    config = with_serving(accelerated.config, label_calibration=evaluation.label_stops.calibration)
    origin = {
        "version": f"{folder.resolve().parent.name}/{folder.name}",
        "inputs": len(data.train.labels),
        "seconds": round(accelerated.seconds, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    config = config.model_copy(update={"provenance": config.provenance | {"accelerated": origin}})
    name = folder.resolve().parent.name
    new = new_version(store, name)
    with new as version:
        save(version, config, network, accelerated.mixing)
        for kept in KEPT_FILES:
            if (folder / kept).exists():
                shutil.copyfile(folder / kept, version / kept)
        write_evaluation_report(version, name, evaluation)
        write_card(version, name)
        if (folder / "step.onnx").exists():
            from jfb.export import export  # imported here, because it takes seconds

            with console.status("writing the ONNX graphs with the new solver"):
                export(version, parts=True)
    return new.folder, accelerated, evaluation


def _thinned(data: Data, times: SolverTimes) -> Data:
    """Every k-th input of the parts that evaluation reads, so that it takes about ``EVALUATION_SECONDS``."""
    microseconds = sum(at[-1] for name, at in times.microseconds_at.items() if not name.endswith(WITHOUT_START))
    count = max(MIN_EVALUATED, int(EVALUATION_SECONDS / (EVALUATION_COST * 1e-6 * microseconds)))

    def some(part: Split) -> Split:
        return part[np.arange(0, len(part.labels), math.ceil(len(part.labels) / count))]

    others = tuple(some(part) for part in data.generalisation)
    return replace(data, validation=some(data.validation), test=some(data.test), generalisation=others)
