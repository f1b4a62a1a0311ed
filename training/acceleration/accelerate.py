"""Acceleration: a stored model becomes a new version with the same weights and a learned solver."""

import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from jfb import Checkpoint, ImplicitNetwork, ModelConfig
from jfb.checkpoint import save
from jfb.solvers import Mixing
from jfb.store import CURVES, METRICS, SAMPLES, new_version
from jfb.store import HISTORY as TRAINING_HISTORY
from training.acceleration.fit import fit_mixing
from training.data import Data
from training.evaluation.evaluate import TOLERANCES, Evaluation, evaluate
from training.evaluation.solver_times import SolverTimes, time_solvers
from training.reports.evaluation_report import write_evaluation_report
from training.reports.model_card import write_card
from training.store import with_serving

KEPT_FILES = (METRICS, SAMPLES, TRAINING_HISTORY, CURVES)
"""Of the version that is accelerated: its weights are the same, and so is what they say."""


@dataclass(frozen=True)
class Accelerated:
    """A network with a learned solver, and whether that pays."""

    config: ModelConfig
    """The model's, with mixing as the default solver if it is clearly the fastest."""
    mixing: Mixing
    seconds: float
    """That the fit took."""
    times: SolverTimes
    """Of every solver, on the validation part; measured with the solver that was the default before."""

    @property
    def pays(self) -> bool:
        """Whether mixing became the default."""
        return self.config.serving.solver == "mixing"


def accelerate_network(
    network: ImplicitNetwork, config: ModelConfig, data: Data, *, device: torch.device, console: Console
) -> Accelerated:
    """Fit mixing to a network on the training part's inputs, and make it the default if it takes clearly less time.

    Args:
        network: in evaluation mode, on the device.

    Raises:
        ModelError: for a network that mixing is not for.
    """
    started = time.monotonic()
    mixing = fit_mixing(network, data.train.inputs, device=device, console=console)
    seconds = time.monotonic() - started
    times = time_solvers(network, config, data.validation.inputs, min(TOLERANCES), mixing=mixing, device=device)
    faster = times.recommended == "mixing"
    return Accelerated(with_serving(config, solver="mixing") if faster else config, mixing, seconds, times)


def accelerate_version(
    checkpoint: Checkpoint, folder: Path, data: Data, store: Path, *, device: torch.device, console: Console
) -> tuple[Path, Accelerated, Evaluation]:
    """Accelerate a stored model and publish the result as its next version.

    Args:
        checkpoint: what ``folder`` holds, on the device.
        folder: the version's.

    Returns:
        The new version's folder, what was fitted, and the evaluation of the new version.

    Raises:
        ModelError: for a network that mixing is not for, and for data that the model is not for.
    """
    network = checkpoint.network
    accelerated = accelerate_network(network, checkpoint.config, data, device=device, console=console)
    evaluation = evaluate(network, accelerated.config, data, mixing=accelerated.mixing, device=device, console=console)
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
