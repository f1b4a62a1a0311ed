"""The training loop."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from jfb import ImplicitNetwork, solve
from jfb.architectures import build
from jfb.config import ArchitectureSpec
from jfb.contraction import local_contraction_factor
from training.augment import build_augmentation
from training.averaging import averaging
from training.data import Data, measure_normalisation
from training.errors import NonFiniteLossError, RecipeError, TrainingError
from training.history import Epoch
from training.jacobian_penalty import jacobian_penalty
from training.joint_batch_norm import join_batch_norms
from training.precision import bfloat16_pays
from training.processes import Processes
from training.recipe import OptimisationRecipe, Recipe
from training.run_folder import RunFolder, Snapshot
from training.score import Score, score
from training.sources import Split

Watch = Callable[[ImplicitNetwork, Tensor, Tensor], None]
"""Looks on: called before each step with the network in training mode and the batch of inputs and labels that it will learn
from. It must leave the network and torch's random state as they are."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the network, and what is known about it."""

    recipe: Recipe
    architecture: ArchitectureSpec
    """With the arguments that were measured."""
    network: ImplicitNetwork
    """In evaluation mode; the averaged weights at the end of the best epoch."""
    epoch: int
    """The best: the one with the highest validation accuracy, and of several the last."""
    history: list[Epoch]
    validation: Score
    test: Score
    seconds: float
    """Of training, without the time between a crash and the resumption."""
    contraction_bound: float | None
    """Guaranteed upper bound on γ."""
    contraction_factor: float
    """Largest ``‖∂T/∂u‖₂`` measured at fixed points of validation inputs."""


def train(
    recipe: Recipe,
    data: Data,
    *,
    device: torch.device,
    console: Console,
    watch: Watch | None = None,
    folder: RunFolder | None = None,
    processes: Processes | None = None,
) -> Trained:
    """Train the recipe's network on the training part, watch it on the validation part, report on the test part.

    The same recipe and data give the same weights, bit for bit, on the same machine with the same number of threads, also
    when the run was killed and resumed any number of times. On several processes they are the same to rounding, but for
    dropout, which each process draws for its own rows.

    Args:
        folder: where to write while the run goes on; a run that has a snapshot there is resumed from it.
        processes: this one alone if not given.

    Raises:
        RecipeError: for arguments that the architecture refuses, and batches with less than an input a process.
        NonFiniteLossError: as soon as the loss is NaN or infinite.
        TrainingError: for a snapshot of another recipe or of other data.
    """
    processes = processes or Processes()
    snapshot = folder.read_snapshot() if folder else None
    run = Run(settled(recipe, data, device, processes, snapshot), data, device, processes)
    if folder and snapshot:
        run.restore(snapshot, folder)
        console.print(f"going on with {folder.path} at epoch {run.epoch}, after step {run.step}", soft_wrap=True)
    began = time.perf_counter() - run.seconds
    saved = time.perf_counter()
    epochs = recipe.optimisation.epochs
    writes = folder if processes.first else None
    with _progress(console) as progress, writes.record(run.history) if writes else nullcontext() as record:
        bar = progress.add_task("", total=epochs * run.steps, news="")
        while run.epoch <= epochs:
            run.network.train()
            for rows in run.remaining_batches():
                run.learn(rows, watch)
                done = (run.epoch - 1) * run.steps + run.step
                progress.update(bar, completed=done, description=f"epoch {run.epoch}/{epochs}", news=run.news())
                if writes and time.perf_counter() - saved >= writes.snapshot_seconds:
                    run.seconds = time.perf_counter() - began
                    writes.write_snapshot(run.snapshot())
                    saved = time.perf_counter()
            news, validation = run.news(), score(run.averaged, data.validation, recipe.serving, device)
            run.seconds = time.perf_counter() - began
            run.end_epoch(validation)
            if writes and record:
                record.add(run.history)
                writes.write_snapshot(run.snapshot())
                saved = time.perf_counter()
            progress.console.print(
                f"epoch {run.history[-1].epoch}: {news}; validation loss {validation.loss:.4f}, accuracy "
                f"{100 * validation.accuracy:.2f} %, iterations {validation.iterations:.1f}",
                soft_wrap=True,
            )

    network = run.best_network()
    return Trained(
        recipe=run.recipe,
        architecture=run.architecture,
        network=network,
        epoch=run.best_epoch,
        history=run.history,
        validation=score(network, data.validation, recipe.serving, device),
        test=score(network, data.test, recipe.serving, device),
        seconds=run.seconds,
        contraction_bound=network.contraction_bound(),
        contraction_factor=measured_contraction(network, data.validation, recipe, device),
    )


class Learner(nn.Module):
    """A forward pass of training: from inputs and labels to a loss with a graph, and what there is to report."""

    def __init__(self, network: ImplicitNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.gradient, self.search = recipe.gradient.build(), recipe.search.build()
        self.label_smoothing = recipe.optimisation.label_smoothing
        self.jacobian_penalty = recipe.optimisation.jacobian_penalty

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses, and sums ``[3]`` without a graph: of losses, right answers and iterations."""
        injection = self.network.inject(inputs)
        state, solution = self.gradient(self.network, injection, self.search)
        logits = self.network.readout(state)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        if self.jacobian_penalty:
            loss = loss + self.jacobian_penalty * jacobian_penalty(self.network, solution.fixed_point, injection).sum()
        right = (logits.argmax(1) == labels).sum()
        return loss, torch.stack([loss.detach(), right.to(loss.dtype), solution.iterations.sum().to(loss.dtype)])


class Run:
    """Everything that changes as a run goes on. A snapshot is all of it, so what follows a snapshot is decided by it.

    There is no random state to keep: whatever is random in a step is drawn from a seed of its own.
    """

    def __init__(self, recipe: Recipe, data: Data, device: torch.device, processes: Processes) -> None:
        settings = recipe.optimisation
        batch = min(settings.batch_size, len(data.train.labels))
        if batch < processes.count:
            raise RecipeError(
                f"{recipe.name}: optimisation.batch_size: expected at least an input for each of {processes.count} processes, "
                f"got batches of {batch}"
            )
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.deterministic = True
        self.recipe, self.data, self.device, self.processes = recipe, data, device, processes
        self.architecture = with_normalisation(recipe.network, data.train)
        arguments = self.architecture.arguments
        try:
            network = build(self.architecture.name, data.input.shape, len(data.classes), arguments).to(device)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{recipe.name}: network: {error}") from error
        if processes.count > 1:
            join_batch_norms(network)
        if len(data.input.shape) == 3:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster so
        self.network = network
        # Operator norms are convex, so an average of weights that keep a bound keeps it, too.
        self.average = averaging(network, settings.averaging)
        self.averaged = cast(ImplicitNetwork, self.average.module)
        self.learner = processes.wrap(Learner(network, recipe))
        self.augment = build_augmentation(recipe.augment)

        self.steps = max(len(data.train.labels) // settings.batch_size, 1)
        """Of an epoch."""
        self.optimiser = torch.optim.AdamW(decayed(network, settings.weight_decay), lr=settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: learning_rate_factor(step / (settings.epochs * self.steps), settings.warm_up)
        )
        self.epoch = 1
        self.step = 0
        """Steps of this epoch that are behind."""
        self.sums = [0.0, 0.0, 0.0, 0.0]
        """Of this epoch: losses, right answers, iterations, inputs."""
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0

    def remaining_batches(self) -> list[Tensor]:
        """Rows of each step that is left of this epoch; what does not fill a batch waits for another epoch's order."""
        generator = torch.Generator().manual_seed(epoch_seed(self.recipe.optimisation, self.epoch))
        order = torch.randperm(len(self.data.train.labels), generator=generator)
        size = self.recipe.optimisation.batch_size
        return [order[step * size : (step + 1) * size] for step in range(self.step, self.steps)]

    def learn(self, rows: Tensor, watch: Watch | None) -> None:
        """Make one step, with the given rows of the training part."""
        part, processes = self.data.train, self.processes
        seed = step_seed(self.recipe.optimisation, self.epoch, self.step)
        torch.manual_seed(seed)
        # Every process augments the joint batch, or what one draws for an image would hang on how many processes there are.
        inputs, labels = self.augment(part.inputs[rows].to(self.device, torch.float32)), part.labels[rows].to(self.device)
        if watch:
            watch(self.network, inputs, labels)
        if processes.rank:
            torch.manual_seed(seed + processes.rank)  # dropout's masks are for rows of its own

        loss, sums = self.learner(processes.part(inputs), processes.part(labels))
        sums = [*processes.total(sums).tolist(), len(rows)]
        if not math.isfinite(sums[0]):
            raise NonFiniteLossError(_non_finite(self.recipe, self.epoch, self.step + 1, sums[0] / len(rows), inputs))
        self.optimiser.zero_grad()
        (loss * (processes.count / len(rows))).backward()  # the processes' gradients are averaged, not summed
        self.optimiser.step()
        self.schedule.step()
        self.network.constrain()
        self.average.update_parameters(self.network)

        self.sums = [total + number for total, number in zip(self.sums, sums, strict=True)]
        self.step += 1

    def news(self) -> str:
        """This epoch so far, for people."""
        loss, right, iterations, inputs = self.sums
        return f"loss {loss / inputs:.4f}  accuracy {100 * right / inputs:.2f} %  iterations {iterations / inputs:.1f}"

    def end_epoch(self, validation: Score) -> None:
        """Write down the epoch, keep its weights if they are the best, and go to the next one."""
        loss, right, iterations, inputs = self.sums
        if validation.accuracy >= max((epoch.validation_accuracy for epoch in self.history), default=0.0):
            self.best_epoch = self.epoch
            self.best_weights = {name: tensor.to("cpu", copy=True) for name, tensor in self.averaged.state_dict().items()}
        self.history.append(
            Epoch(
                epoch=self.epoch,
                seconds=self.seconds,
                learning_rate=float(self.schedule.get_last_lr()[0]),
                train_loss=loss / inputs,
                train_accuracy=right / inputs,
                train_iterations=iterations / inputs,
                validation_loss=validation.loss,
                validation_accuracy=validation.accuracy,
                validation_iterations=validation.iterations,
                contraction_bound=self.averaged.contraction_bound(),
            )
        )
        self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0, 0.0, 0.0, 0.0]

    def best_network(self) -> ImplicitNetwork:
        """The averaged network, from here on with the weights of the best epoch."""
        self.averaged.load_state_dict(self.best_weights)
        return self.averaged.eval()

    def snapshot(self) -> Snapshot:
        """The state of the run, as plain data."""
        return {
            **self._origin(),
            **{name: getattr(self, name) for name in ("epoch", "step", "sums", "seconds", "best_epoch", "best_weights")},
            "history": [asdict(epoch) for epoch in self.history],
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def restore(self, snapshot: Snapshot, folder: RunFolder) -> None:
        """Go on from a snapshot.

        Raises:
            TrainingError: if it is of another recipe, or of data with another mean and standard deviation.
        """
        changed = _differences({key: snapshot[key] for key in self._origin()}, self._origin())
        if changed:
            raise TrainingError(f"--resume: {folder.path} was begun otherwise: {'; '.join(changed)}")
        for name in ("epoch", "step", "sums", "seconds", "best_epoch", "best_weights"):
            setattr(self, name, snapshot[name])
        self.history = [Epoch(**epoch) for epoch in snapshot["history"]]
        for name, part in self._parts().items():
            part.load_state_dict(snapshot[name])

    def _origin(self) -> dict[str, Any]:
        return {"recipe": self.recipe.model_dump(mode="json"), "architecture": self.architecture.model_dump(mode="json")}

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "average": self.average, "optimiser": self.optimiser, "schedule": self.schedule}


def new_network(recipe: Recipe, architecture: ArchitectureSpec, data: Data, device: torch.device) -> ImplicitNetwork:
    """A network with random weights, laid out in memory as training wants it.

    Raises:
        RecipeError: for arguments that the architecture refuses.
    """
    try:
        network = build(architecture.name, data.input.shape, len(data.classes), architecture.arguments).to(device)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: network: {error}") from error
    if len(data.input.shape) == 3:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster so
    return network


def settled(recipe: Recipe, data: Data, device: torch.device, processes: Processes, snapshot: Snapshot | None) -> Recipe:
    """The recipe with a search precision that is not ``auto``: as the run that is resumed chose, or the faster one here."""
    if recipe.search.precision != "auto":
        return recipe
    if snapshot:
        return recipe.changed({"search.precision": snapshot["recipe"]["search"].get("precision", "float32")})
    torch.manual_seed(recipe.optimisation.seed)
    network = new_network(recipe, with_normalisation(recipe.network, data.train), data, device)
    inputs = data.train.inputs[: recipe.optimisation.batch_size].to(device, torch.float32)
    pays = bfloat16_pays(network, inputs, recipe.search.build())
    # The first process decides for all: they must agree, and clocks do not.
    votes = processes.total(torch.tensor(float(pays and processes.first), device=device))
    return recipe.changed({"search.precision": "bfloat16" if bool(votes) else "float32"})


def with_normalisation(network: ArchitectureSpec, part: Split) -> ArchitectureSpec:
    """Add the mean and standard deviation of a part's inputs to an architecture's arguments, where they are left out."""
    mean, std = measure_normalisation(part.inputs)
    return ArchitectureSpec(name=network.name, arguments={"mean": [*mean], "std": [*std], **network.arguments})


def decayed(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters in two groups for the optimiser: weight decay is for matrices and kernels alone."""
    kernels = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """Factor on the learning rate at a share of the run, both in [0, 1]: a line up, then a cosine down to zero."""
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up  # a rate of zero would waste the first step
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warm_up) / (1 - warm_up))


def epoch_seed(settings: OptimisationRecipe, epoch: int) -> int:
    """The seed of an epoch's order."""
    return settings.seed * 1_000_003 + epoch


def step_seed(settings: OptimisationRecipe, epoch: int, step: int) -> int:
    """The seed of what else is random in a step: augmentation and dropout."""
    return (epoch_seed(settings, epoch) * 1_000_003 + step) % 2**63


def measured_contraction(
    network: ImplicitNetwork, part: Split, recipe: Recipe, device: torch.device, *, rows: int = 256
) -> float:
    """The largest ``‖∂T/∂u‖₂`` at the fixed points of a part's first inputs."""
    with torch.no_grad():
        injection = network.inject(part.inputs[:rows].to(device, torch.float32))
    serving = recipe.serving
    solution = solve(
        network,
        injection,
        tolerance=serving.tolerance,
        max_iterations=serving.max_iterations,
        residual_norm=serving.residual_norm,
    )
    return float(local_contraction_factor(network, solution.fixed_point, injection).amax())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
        console=console,
        transient=True,
    )


def _non_finite(recipe: Recipe, epoch: int, step: int, loss: float, inputs: Tensor) -> str:
    where = f"epoch {epoch}, step {step}: the loss is {loss}"
    if not bool(inputs.isfinite().all()):
        return f"{where}, because inputs of this batch are not finite: mend the data"
    return (
        f"{where}: lower optimisation.learning_rate (now {recipe.optimisation.learning_rate:g}), or lengthen "
        f"optimisation.warm_up (now {recipe.optimisation.warm_up:g})"
    )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, in words."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old}, is {new}")
    return found
