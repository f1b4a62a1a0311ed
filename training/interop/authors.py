"""Authors: import the weights that the authors of the JFB paper published."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jfb import ModelConfig, ResidualNorm, __version__
from jfb.architectures import build
from jfb.checkpoint import save
from jfb.config import ArchitectureSpec, InputSpec, Serving
from jfb.store import new_version
from training.errors import ForeignFileError
from training.interop.foreign_pickle import read_tensors
from training.reports.model_card import write_card

DIGITS = [str(digit) for digit in range(10)]
OBJECTS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Family(StrEnum):
    """The authors' networks."""

    MNIST = "mnist"
    SVHN = "svhn"
    CIFAR10_SMALL = "cifar10_small"


@dataclass(frozen=True)
class Facts:
    """What the authors' programs define for a family and their files do not contain."""

    shape: tuple[int, ...]
    stem: str
    mean: list[float]
    std: list[float]
    classes: list[str]
    tolerance: float
    unused: tuple[str, ...]
    """Prefixes of tensors in the files that the network does not use."""
    published: str


FACTS = {
    Family.MNIST: Facts((1, 28, 28), "plain", [0.1307], [0.3081], DIGITS, 0.1, ("lat_batch_norm.0.num_batches",), "99.36 %"),
    Family.SVHN: Facts(
        (3, 32, 32),
        "resnet",
        [0.4377, 0.4438, 0.4728],
        [0.1980, 0.2010, 0.1970],
        DIGITS,
        1e-4,
        ("lat_batch_norm.0.num_batches", "bn_1.", "bn_2."),
        "94.12 %",
    ),
    Family.CIFAR10_SMALL: Facts(
        (3, 32, 32),
        "resnet",
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
        OBJECTS,
        0.1,
        ("lat_batch_norm.0.num_batches", "bn_1.", "bn_2."),
        "80.45 %",
    ),
}

ABOUT = """\
The implicit network of the JFB paper's authors ({family}; Wu Fung, Heaton, Li, McKenzie, Osher, Yin, AAAI 2022), with the
weights that they published. Published test accuracy: {published}, measured in batches that stop when their worst image has
converged; here each image stops on its own.

This network is not a contraction by construction: it converges because it was trained to."""


def import_authors(path: Path, family: Family, store: Path, name: str) -> Path:
    """Import a file of published weights into the store, as a model that can be served.

    Args:
        path: ``.safetensors`` with the authors' names, or their ``.pth``.
        family: of the network, which the file does not state.
        store: the model store.
        name: of the model.

    Returns:
        The version's folder.

    Raises:
        ForeignFileError: for a file that cannot be read, or tensors that are not that family's.
    """
    facts = FACTS[family]
    config = ModelConfig(
        architecture=ArchitectureSpec(
            name="authors_resnet", arguments={"stem": facts.stem, "mean": [*facts.mean], "std": [*facts.std], "scale": 0.9}
        ),
        input=InputSpec(shape=facts.shape, kind="image", low=0, high=255),
        classes=facts.classes,
        serving=Serving(tolerance=facts.tolerance, max_iterations=200, residual_norm=ResidualNorm.CHANNEL_MAX),
        provenance={
            "about": ABOUT.format(family=family, published=facts.published),
            "license": "mit",
            "file": path.name,
            "family": family.value,
            "jfb": __version__,
            "torch": torch.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    network = build(config.architecture.name, facts.shape, len(facts.classes), config.architecture.arguments)
    weights = {key: tensor for key, tensor in read_weights(path).items() if not key.startswith(facts.unused)}
    expected = network.state_dict()
    # The authors' files do not contain the normalisation of the input, which here is part of the network.
    weights |= {key: tensor for key, tensor in expected.items() if key.startswith("standardise.")}
    problems = [f"{key} is missing" for key in expected if key not in weights]
    problems += [f"{key} is not part of this network" for key in weights if key not in expected]
    problems += [
        f"{key}: must have shape {list(tensor.shape)} (got {list(weights[key].shape)})"
        for key, tensor in expected.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise ForeignFileError(f"{path}: not the weights of the {family} network: {'; '.join(problems[:4])}{more}")
    network.load_state_dict(weights)
    new = new_version(store, name)
    with new as folder:
        save(folder, config, network)
        write_card(folder, name)
    return new.folder


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of the authors' ``.pth``, by name.

    Raises:
        ForeignFileError: for any other file.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ForeignFileError(f"{path}: not a readable safetensors file: {error}") from error
    content: Any = read_tensors(path)
    if isinstance(content, dict):
        content = next((content[key] for key in ("net_state_dict", "T_state_dict") if key in content), content)
    if not isinstance(content, dict) or not content or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ForeignFileError(f"{path}: must hold a dict of tensors, at its top or under net_state_dict or T_state_dict")
    return dict(content)
