"""A small model store to serve in tests: every kind of model that the server must cope with, none of them trained."""

import json
from pathlib import Path

import torch
from torch import nn

from jfb import ModelConfig, checkpoint
from jfb.architectures import build
from jfb.architectures.implicit_mlp import ImplicitMLP
from jfb.architectures.implicit_resnet import ImplicitResNet
from jfb.contraction import operator_norm_bound
from jfb.network import ImplicitNetwork
from jfb.store import new_version

DIGITS = ModelConfig.model_validate(
    {
        "architecture": {
            "name": "implicit_resnet",
            "arguments": {"mean": 8.0, "std": 8.0, "channels": [8], "pool": [2], "contraction": 0.9, "slope": 0.3},
        },
        "input": {"shape": [1, 8, 8], "kind": "image", "low": 0, "high": 16},
        "classes": [str(digit) for digit in range(10)],
        "serving": {"tolerance": 1e-3, "max_iterations": 60},
    }
)
"""As scikit-learn's digits; the iterations that a row takes depend on the row and on the tolerance."""

SLOW = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_mlp", "arguments": {"width": 8, "contraction": 0.999999, "slope": 1.0}},
        "input": {"shape": [4], "kind": "vector"},
        "classes": ["no", "yes"],
    }
)
"""``u = 0.999999 · W u + q`` with W a rotation: it takes all the iterations that a request allows."""

WILD = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_mlp", "arguments": {"width": 4, "slope": 1.0}},
        "input": {"shape": [2], "kind": "vector", "low": -1, "high": 1},
        "classes": ["calm", "wild"],
    }
)
"""``u = 1e30 · u + q`` with q = 0 for the input 0: that row is at its fixed point, every other one diverges."""


def make_store(store: Path) -> Path:
    """Fill a folder: digits (two versions and a broken third one), slow and wild."""
    for seed in (1, 2):
        network = network_of(DIGITS, seed)
        assert isinstance(network, ImplicitResNet)
        kernel = network.latent.weight.data
        kernel[:, :, 1, 1] += 3 * torch.eye(8)  # near the identity, so that errors shrink slowly
        kernel /= operator_norm_bound(kernel)
        with new_version(store, "digits") as folder:
            checkpoint.save(folder, DIGITS, network)
            (folder / "metrics.json").write_text(json.dumps({"accuracy": 0.1 * seed}))
            (folder / "README.md").write_text("# digits\n")
    (store / "digits" / "3").mkdir()
    (store / "digits" / "3" / "config.json").write_text('{"format_version": 99}')

    slow = network_of(SLOW, 1)
    assert isinstance(slow, ImplicitMLP)
    nn.init.orthogonal_(slow.latent.weight)
    with new_version(store, "slow") as folder:
        checkpoint.save(folder, SLOW, slow)

    wild = network_of(WILD, 1)
    assert isinstance(wild, ImplicitMLP)
    wild.latent.weight.data = 1e30 * torch.eye(4)
    for parameter in wild.encode.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
    with new_version(store, "wild") as folder:
        checkpoint.save(folder, WILD, wild)
    return store


def network_of(config: ModelConfig, seed: int) -> ImplicitNetwork:
    """A network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(config.architecture.name, config.input.shape, len(config.classes), config.architecture.arguments)
