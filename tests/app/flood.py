"""A model that solves mazes without training: max-propagation with weights that make it a flood fill from the exits."""

from pathlib import Path

import torch
from torch import nn

from jfb import ModelConfig, checkpoint
from jfb.architectures.max_propagation import MaxPropagation
from jfb.store import Sample, new_version, write_samples
from tests.app.store import network_of
from training.data.mazes import COLOURS, Mazes

CONTRACTION = 0.98


def add_flood(store: Path, mazes: Mazes) -> None:
    """Add the model ``mazes``, with these as samples.

    After k iterations, the state has 1 in the channel of a colour at its exit, and γ^d at distance d ≤ k from it; and 1 in a
    channel of its own at the source. The logits are equal until the flood of a colour arrives at the source.
    """
    side = mazes.pixels.shape[1]
    config = ModelConfig.model_validate(
        {
            "architecture": {
                "name": "max_propagation",
                "arguments": {"mean": 0.0, "std": 255.0, "channels": 6, "features": 4, "contraction": CONTRACTION},
            },
            "input": {"shape": [3, side, side], "kind": "image", "low": 0, "high": 255},
            "classes": list(COLOURS),
            "serving": {"tolerance": 1e-3, "max_iterations": 200},
        }
    )
    network = network_of(config, 1)
    assert isinstance(network, MaxPropagation)
    # Of red, green and blue in [0, 1]: 1 for what a channel shows, at most 0 for everything else.
    of_rgb = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, -1, -1]]
    _set(network.stem[0], of_rgb, [0, 0, 0, -1, -1, 1])
    _set(network.stem[2], torch.eye(6).tolist(), [0] * 6)
    _set(network.source, torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 0])).tolist(), [0] * 6)
    # Only colours pass, and only where there is no wall.
    _set(network.gate, [[0, 0, 0, 0, 0, -60 if k < 4 else 0] for k in range(6)], [30] * 4 + [-30] * 2)
    _set(network.read, [[float(k == j or k == 4) for k in range(6)] for j in range(4)], [-1] * 4)
    network.classify.weight.data = 30 * torch.eye(4)
    network.classify.bias.data.zero_()
    with new_version(store, "mazes") as folder:
        checkpoint.save(folder, config, network)
        samples = zip(mazes.images(), mazes.labels, strict=True)
        write_samples(folder, [Sample(image.tolist(), COLOURS[label]) for image, label in samples])


def _set(layer: nn.Module, weight: list[list[float]], bias: list[float]) -> None:
    assert isinstance(layer, nn.Conv2d)
    layer.weight.data = torch.tensor(weight, dtype=torch.float32)[:, :, None, None]
    assert layer.bias is not None
    layer.bias.data = torch.tensor(bias, dtype=torch.float32)
