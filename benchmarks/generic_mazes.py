"""A generic convolutional network on mazes: no maximum is built into its step, and nothing guarantees that it converges.

    OMP_NUM_THREADS=1 python -m benchmarks.generic_mazes

A gated 3×3 convolution of state and injection (the input is recalled at every step), with layer normalisation over the channels
of each pixel, which keeps rows independent. Each training step makes a random number of iterations without gradients, so that
the result does not depend on their number (path independence: Anil et al., 2022), then backpropagates through six more, and
penalises the residual after them.
"""

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from jfb import ImplicitNetwork
from jfb.config import ResidualNorm
from jfb.norms import residual
from training.data.mazes import distinct_mazes
from training.reports.tables import markdown_table

STAGES = ((3, 350, 8), (4, 200, 16), (6, 200, 24))
"""Cells per side, training steps, and the maximum number of iterations without gradients."""
CAPS = (1, 2, 4, 8, 16, 32, 64, 128)
TRACKED = 6
RESIDUAL_PENALTY = 0.1
LEARNING_RATE = 3e-3


class GatedConvolution(ImplicitNetwork):
    """``u⁺ = norm(u + z ⊙ (relu(h) − u))`` with ``z = sigmoid(·)`` and h from one 3×3 convolution of u and q."""

    def __init__(self, channels: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 1), nn.LeakyReLU(0.1), nn.Conv2d(channels, channels, 1))
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.read = nn.Conv2d(channels, 64, 1)
        self.classify = nn.Linear(64, classes)

    def inject(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.stem(inputs / 127.5 - 1)
        return features

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        gate, proposal = self.mix(torch.cat([state, injection], 1)).chunk(2, 1)
        mixed = state + torch.sigmoid(gate) * (F.relu(proposal) - state)
        normalised: Tensor = self.norm(mixed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normalised

    def readout(self, state: Tensor) -> Tensor:
        logits: Tensor = self.classify(F.leaky_relu(self.read(state), 0.1).amax((2, 3)))
        return logits


def train(network: GatedConvolution) -> None:
    """Train on mazes that grow from stage to stage."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    total = sum(steps for _, steps, _ in STAGES)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: min(1, (k + 1) / 50) * (0.5 + 0.5 * np.cos(np.pi * k / total))
    )
    for size, steps, untracked in STAGES:
        mazes = distinct_mazes(size, 12_000, seed=1)
        inputs, labels = torch.from_numpy(mazes.images()), torch.from_numpy(mazes.labels)
        for _ in range(steps):
            rows = torch.randint(len(labels), (64,))
            injection = network.inject(inputs[rows].float().contiguous(memory_format=torch.channels_last))
            state = torch.zeros_like(injection)
            with torch.no_grad():
                for _ in range(int(torch.randint(untracked, ()))):
                    state = network.step(state, injection)
            for _ in range(TRACKED):
                state = network.step(state, injection)
            moved = network.step(state, injection) - state
            loss = F.cross_entropy(network.readout(state), labels[rows]) + RESIDUAL_PENALTY * moved.square().mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        print(f"trained on {size} × {size} cells: loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def by_iterations(network: GatedConvolution, size: int, count: int = 500) -> tuple[list[str], float]:
    """Accuracy at each cap, and the mean relative residual at the last."""
    mazes = distinct_mazes(size, count, seed=0)
    labels = torch.from_numpy(mazes.labels)
    injection = network.inject(torch.from_numpy(mazes.images()).float())
    state = torch.zeros_like(injection)
    shares = []
    for k in range(1, max(CAPS) + 1):
        before, state = state, network.step(state, injection)
        if k in CAPS:
            shares.append(f"{float((network.readout(state).argmax(1) == labels).double().mean()):.1%}")
    return shares, float(residual(before, state, ResidualNorm.RELATIVE).mean())


def main() -> None:
    """Train, and print accuracy and residual by iterations."""
    torch.manual_seed(0)
    network = GatedConvolution().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(network)
    rows = []
    for size in (3, 4, 6, 8):
        shares, moved = by_iterations(network.eval(), size)
        rows.append((f"{size} × {size}", *shares, f"{moved:.1e}"))
    print(f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters\n")
    print(markdown_table(("cells", *map(str, CAPS), f"relative residual after {max(CAPS)}"), rows))


if __name__ == "__main__":
    typer.run(main)
