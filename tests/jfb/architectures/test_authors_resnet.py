"""Against numbers computed with the paper's authors' own program and published weights."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jfb import ImplicitNetwork, ResidualNorm, predict
from jfb.architectures import build
from jfb.contraction import local_contraction_factor


@pytest.fixture(scope="module")
def network(shared: Path) -> ImplicitNetwork:
    network = build("authors_resnet", (1, 28, 28), 10, {"stem": "plain", "mean": 0.1307, "std": 0.3081}).eval()
    weights = load_file(shared / "authors" / "mnist_fpn.safetensors")
    missing = network.load_state_dict(weights, strict=False)
    assert missing.unexpected_keys == ["lat_batch_norm.0.num_batches_tracked"]
    assert missing.missing_keys == ["standardise.mean", "standardise.std"]
    return network


@pytest.fixture(scope="module")
def images(shared: Path) -> torch.Tensor:
    table = pq.read_table(shared / "data" / "mnist" / "test-00000-of-00001.parquet").slice(0, 1000)
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(pictures)).float().unsqueeze(1)


@pytest.mark.parametrize("tolerance", ["0.1", "0.01", "0.001", "0.0001"])
@pytest.mark.slow
def test_iterations_and_logits_are_the_authors_for_each_image_stopping_by_itself(
    network: ImplicitNetwork, images: torch.Tensor, shared: Path, tolerance: str
) -> None:
    reference = np.load(shared / "authors" / "mnist_fpn_reference.npz")
    found = predict(network, images, tolerance=float(tolerance), max_iterations=200, residual_norm=ResidualNorm.CHANNEL_MAX)
    ours, theirs = found.solution.iterations.numpy(), reference[f"iterations_{tolerance}"]
    assert np.abs(ours - theirs).max() <= 1
    off = np.flatnonzero(ours != theirs)
    if len(off):  # another processor may round differently, which matters only where the residual is close to the tolerance
        earlier = torch.from_numpy(np.minimum(ours, theirs)[off])
        there = predict(network, images[off], tolerance=1e-30, max_iterations=earlier, residual_norm=ResidualNorm.CHANNEL_MAX)
        assert there.solution.residual.numpy() == pytest.approx(float(tolerance), rel=0.01), "more than rounding explains"
    assert np.abs(found.logits.numpy() - reference[f"logits_{tolerance}"]).max() < 1e-3


def test_their_network_is_no_contraction_in_l2(network: ImplicitNetwork, images: torch.Tensor) -> None:
    """Their published facts: ``‖∂T/∂u‖₂`` of 1.28 to 1.44 at the fixed points."""
    injection = network.inject(images[:16])
    state = predict(network, images[:16], tolerance=1e-6, max_iterations=500).solution.fixed_point
    factors = local_contraction_factor(network, state, injection, iterations=100)
    assert 1.2 < float(factors.min()) <= float(factors.max()) < 1.5
