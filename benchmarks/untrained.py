"""Models with random weights, for measurements that need the shapes of a network and not its accuracy.

python -m benchmarks.untrained cifar10 model_store
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from jfb import ModelConfig, checkpoint
from jfb.architectures import build
from jfb.store import new_version
from training.recipe import load_recipe

CLASSES = 10
HIGH = 255.0
"""Inputs are uniform in [0, 255]."""
ModelOrUntrained = Annotated[
    Path | None, typer.Argument(help="A version's folder; the cifar10 recipe's network, untrained, by default.")
]
"""Argument of a command, for ``model_or_untrained``."""


def publish(
    store: Path, name: str, architecture: str, shape: Sequence[int], arguments: Mapping[str, object], **serving: object
) -> Path:
    """Publish a network with random weights, always the same, and return the version's folder."""
    config = ModelConfig.model_validate(
        {
            "architecture": {"name": architecture, "arguments": {"mean": HIGH / 2, "std": HIGH / 4, **arguments}},
            "input": {"shape": list(shape), "kind": "image" if len(shape) == 3 else "vector", "low": 0.0, "high": HIGH},
            "classes": [str(number) for number in range(CLASSES)],
            "serving": serving,
        }
    )
    torch.manual_seed(0)
    network = build(architecture, shape, CLASSES, config.architecture.arguments)
    new = new_version(store, name)
    with new as folder:
        checkpoint.save(folder, config, network)
    return new.folder


def publish_recipe(recipe: str, store: Path) -> Path:
    """Publish the network of a recipe for CIFAR-10 images."""
    chosen = load_recipe(recipe)
    return publish(store, recipe, chosen.network.name, (3, 32, 32), chosen.network.arguments, tolerance=1e-3, max_iterations=1000)


def model_or_untrained(model: Path | None, folder: Path) -> Path:
    """Return a version's folder: the given one, or that of the cifar10 recipe's network, untrained, in a temporary store."""
    return model or publish_recipe("cifar10", folder)


def main(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe for images of 32x32 pixels in colour.")],
    store: Annotated[Path, typer.Argument(help="The model store.")],
) -> None:
    """Publish, and print the version's folder."""
    print(publish_recipe(recipe, store))


if __name__ == "__main__":
    typer.run(main)
