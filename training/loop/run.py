"""Run: the state of a training run, which a snapshot saves and restores as a whole."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Generic, cast

import torch
from torch import Tensor, nn

from training.data import Data
from training.data.augmentation import build_augmentation
from training.data.placement import free_memory, load_batches, place
from training.device import tensor_float_32
from training.errors import NonFiniteLossError, RecipeError, TrainingError
from training.loop.history import Epoch
from training.loop.joint_batch_norm import join_batch_norms
from training.loop.network import Network
from training.loop.objective import Objective
from training.loop.optimiser import average_weights, build_optimiser
from training.loop.processes import Processes
from training.loop.run_folder import RunFolder, Snapshot
from training.loop.score import Score
from training.recipe import OptimisationRecipe, Recipe


class Run(Generic[Network]):
    """Everything that changes during a run.

    There is no random state to save: whatever is random in a step has a seed of its own.

    Args:
        recipe: as the user wrote it, except for a resolved search precision.
        measured: the same recipe, with the network's measured arguments.
        objective: with the network to train.

    Raises:
        RecipeError: for batches with fewer inputs than processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        measured: Recipe,
        objective: Objective[Network],
        data: Data,
        device: torch.device,
        processes: Processes,
    ) -> None:
        settings = recipe.optimisation
        if len(data.curriculum) != len(recipe.curriculum):
            raise RecipeError(
                f"{recipe.name}: curriculum: the data must have {len(recipe.curriculum)} stages (got {len(data.curriculum)})"
            )
        data = place(data, device, free_memory(device))
        stages = zip((stage.epochs for stage in recipe.curriculum), data.curriculum, strict=True)
        self.parts = [part for epochs, part in (*stages, (settings.epochs, data.train)) for _ in range(epochs)]
        """Training part of each epoch."""
        batch_size = min(settings.batch_size, *(len(part.labels) for part in self.parts))
        if batch_size < processes.count:
            raise RecipeError(
                f"{recipe.name}: optimisation.batch_size: must be at least {processes.count}, the number of processes "
                f"(got {batch_size})"
            )
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False  # except while it learns
        self.recipe, self.architecture = recipe, measured.network
        self.data, self.device, self.processes = data, device, processes
        if processes.count > 1:
            join_batch_norms(objective.network)
        self.objective, self.network = objective, objective.network
        self.learner = processes.wrap(objective)
        # Operator norms are convex, so an average of weights that satisfy a bound satisfies it, too.
        self.average = average_weights(self.network, settings.averaging)
        self.averaged = cast(Network, self.average.module)
        self.augment = build_augmentation(recipe.augment)

        self.steps = [max(len(part.labels) // settings.batch_size, 1) for part in self.parts]
        """Of each epoch."""
        self.optimiser, self.schedule = build_optimiser(self.network, settings, sum(self.steps))
        self.epoch = 1
        self.step = 0
        """Completed steps of this epoch."""
        self.sums = [0.0, 0.0, 0.0, 0.0]
        """Over this epoch: loss, correct answers, iterations, inputs."""
        self.history: list[Epoch] = []
        self.best_epoch = 0
        """The one with the highest validation accuracy; of several, the last."""
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0

    def remaining_batches(self) -> list[Tensor]:
        """Return the rows of each remaining step of this epoch; rows that do not fill a batch are left out."""
        generator = torch.Generator().manual_seed(epoch_seed(self.recipe.optimisation, self.epoch))
        part = self.parts[self.epoch - 1]
        order = torch.randperm(len(part.labels), generator=generator).to(part.labels.device)
        size = self.recipe.optimisation.batch_size
        return [order[step * size : (step + 1) * size] for step in range(self.step, self.steps[self.epoch - 1])]

    def load_batches(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented inputs and labels for each step, and seed the step; they are rows of the epoch's training part."""
        for inputs, labels in load_batches(self.parts[self.epoch - 1], batches, self.device):
            torch.manual_seed(step_seed(self.recipe.optimisation, self.epoch, self.step))
            # Every process augments the whole batch: otherwise the augmentation would depend on the number of processes.
            yield self.augment(inputs.to(torch.float32)), labels

    def learn(self, inputs: Tensor, labels: Tensor) -> None:
        """Take one step of the optimiser.

        Raises:
            NonFiniteLossError: for a loss that is NaN or infinite.
        """
        processes = self.processes
        if processes.rank:  # dropout masks differ between processes, as their rows do
            torch.manual_seed(step_seed(self.recipe.optimisation, self.epoch, self.step) + processes.rank)
        with tensor_float_32(self.device):
            loss, sums = self.learner(processes.part(inputs), processes.part(labels))
            batch = [*processes.total(sums).tolist(), len(labels)]
            if not math.isfinite(batch[0]):
                raise NonFiniteLossError(self._explain_non_finite(batch[0] / len(labels), inputs))
            self.optimiser.zero_grad()
            (loss * (processes.count / len(labels))).backward()  # the gradients of the processes are averaged, not summed
        if self.recipe.optimisation.max_gradient_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optimisation.max_gradient_norm)
        self.optimiser.step()
        self.schedule.step()
        self.objective.constrain()
        self.average.update_parameters(self.network)

        self.sums = [total + number for total, number in zip(self.sums, batch, strict=True)]
        self.step += 1

    @property
    def completed(self) -> int:
        """Steps of the run so far."""
        return sum(self.steps[: self.epoch - 1]) + self.step

    def progress(self) -> str:
        """Describe this epoch so far."""
        loss, correct, iterations, inputs = self.sums
        return f"loss {loss / inputs:.3f}, {100 * correct / inputs:.2f} %, {iterations / inputs:.1f} iterations"

    def end_epoch(self, validation: Score) -> None:
        """Record the epoch, keep its weights if they are the best so far, and move on to the next epoch."""
        loss, correct, iterations, inputs = self.sums
        if validation.accuracy >= max((epoch.validation_accuracy for epoch in self.history), default=0.0):
            self.best_epoch = self.epoch
            self.best_weights = {name: tensor.to("cpu", copy=True) for name, tensor in self.averaged.state_dict().items()}
        self.history.append(
            Epoch(
                epoch=self.epoch,
                seconds=self.seconds,
                learning_rate=float(self.schedule.get_last_lr()[0]),
                train_loss=loss / inputs,
                train_accuracy=correct / inputs,
                train_iterations=iterations / inputs,
                validation_loss=validation.loss,
                validation_accuracy=validation.accuracy,
                validation_iterations=validation.iterations,
                contraction_bound=self.objective.contraction_bound(self.averaged),
            )
        )
        self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0, 0.0, 0.0, 0.0]

    def best_network(self) -> Network:
        """Load the weights of the best epoch into the averaged network and return it, in evaluation mode."""
        self.averaged.load_state_dict(self.best_weights)
        return self.averaged.eval()

    def snapshot(self) -> Snapshot:
        """Return the state of the run as plain data."""
        return {
            **self._origin(),
            **{name: getattr(self, name) for name in ("epoch", "step", "sums", "seconds", "best_epoch", "best_weights")},
            "history": [asdict(epoch) for epoch in self.history],
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def restore(self, snapshot: Snapshot, folder: RunFolder) -> None:
        """Set the state of the run to that of a snapshot.

        Raises:
            TrainingError: if the snapshot's recipe differs, or its data (in mean or standard deviation).
        """
        changes = _differences({key: snapshot[key] for key in self._origin()}, self._origin())
        if changes:
            raise TrainingError(f"--resume: {folder.path} was started with a different recipe: {'; '.join(changes)}")
        for name in ("epoch", "step", "sums", "seconds", "best_epoch", "best_weights"):
            setattr(self, name, snapshot[name])
        self.history = [Epoch(**epoch) for epoch in snapshot["history"]]
        for name, part in self._parts().items():
            part.load_state_dict(snapshot[name])

    def _origin(self) -> dict[str, Any]:
        return {"recipe": self.recipe.model_dump(mode="json"), "architecture": self.architecture.model_dump(mode="json")}

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "average": self.average, "optimiser": self.optimiser, "schedule": self.schedule}

    def _explain_non_finite(self, loss: float, inputs: Tensor) -> str:
        settings = self.recipe.optimisation
        where = f"epoch {self.epoch}, step {self.step + 1}: the loss is {loss}"
        if not bool(inputs.isfinite().all()):
            return f"{where}, because inputs of this batch are not finite: fix the data"
        return (
            f"{where}: lower optimisation.learning_rate (now {settings.learning_rate:g}), or raise optimisation.warm_up "
            f"(now {settings.warm_up:g})"
        )


def epoch_seed(settings: OptimisationRecipe, epoch: int) -> int:
    """Return the seed of the order of an epoch."""
    return settings.seed * 1_000_003 + epoch


def step_seed(settings: OptimisationRecipe, epoch: int, step: int) -> int:
    """Return the seed of what else is random in a step: augmentation and dropout."""
    return (epoch_seed(settings, epoch) * 1_000_003 + step) % 2**63


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Describe the keys whose values differ."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old}, is {new}")
    return found
