"""Draws docs/theory_preconditioning.png and docs/theory_descent.png: the theorems of the paper, on small float64 networks.

Everything drawn is computed here, by the gradients of ``jfb.gradients`` and the matrices of ``jfb.theory``; a few seconds.

    python docs/draw_theory.py
"""

import io
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from jfb import ImplicitNetwork
from jfb.architectures import ImplicitMLP
from jfb.gradients import JFB, Gradient, Jacobian, Neumann, Search
from jfb.theory import DenseMatrices, Sheared, dense_matrices, fixed_point

mpl.use("Agg")
from matplotlib import pyplot as plt

LABEL = 1
WIDTH = 6
FACTORS = (0.3, 0.6, 0.9)
COLOURS = dict(zip(FACTORS, ("#2a6f97", "#e8a33d", "#b5443c"), strict=True))
EXACTLY = Search(tolerance=1e-14, max_iterations=100_000)


def network_of(gamma: float, seed: int = 0) -> ImplicitMLP:
    """A random implicit MLP, 114 weights of T and 6 latent entries, its latent matrix at the bound."""
    torch.manual_seed(seed)
    network = ImplicitMLP((5,), 3, width=WIDTH, contraction=gamma).double().eval()
    with torch.no_grad():
        network.latent.weight.mul_(50)
    network.constrain()
    return network


def input_of(seed: int = 0) -> Tensor:
    return torch.rand(1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(network: ImplicitNetwork, inputs: Tensor, gradient: Gradient) -> Tensor:
    """What training would descend along, for the weights of T."""
    network.zero_grad()
    state, _ = gradient(network, network.inject(inputs), EXACTLY)
    F.cross_entropy(network.readout(state), torch.tensor([LABEL])).backward()
    return torch.cat([p.grad.flatten() for n, p in network.named_parameters() if "classify" not in n and p.grad is not None])


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=0))


def angles(matrices: DenseMatrices, losses: int) -> Tensor:
    """In degrees, between the JFB direction and the gradient, for random losses."""
    m, j = matrices.weights_to_state, matrices.system
    pulled_back = torch.randn(len(j), losses, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = F.cosine_similarity(m @ pulled_back, m @ torch.linalg.solve(j.T, pulled_back), dim=0)
    return torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))


def draw_preconditioning(path: Path) -> None:
    figure, (same, spread) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
    for gamma in FACTORS:
        network, inputs = network_of(gamma), input_of()
        exact = direction(network, inputs, Jacobian(tolerance=1e-14, max_iterations=100_000))
        matrices = dense_matrices(network, inputs, LABEL)
        m, j = matrices.weights_to_state, matrices.system
        preconditioned = m @ j.T @ torch.linalg.pinv(m) @ exact
        found = direction(network, inputs, JFB())
        same.plot(preconditioned, found, "o", color=COLOURS[gamma], alpha=0.6, markersize=5, label=f"γ = {gamma:g}")
        same.plot(exact, found, "x", color=COLOURS[gamma], alpha=0.5, markersize=4)
        values = np.concatenate(
            [torch.linalg.svdvals(dense_matrices(network_of(gamma, k), input_of(k), LABEL).system) for k in range(20)]
        )
        spread.hist(values, np.linspace(0, 2, 41), color=COLOURS[gamma], alpha=0.55, label=f"γ = {gamma:g}")
        for edge in (1 - gamma, 1 + gamma):
            spread.axvline(edge, color=COLOURS[gamma], linestyle="--", linewidth=1)
    same.axline((0, 0), slope=1, color="#999999", linewidth=0.8, zorder=0)
    same.set(xlabel="M Jᵀ M⁺ dℓ/dΘ   (×: dℓ/dΘ itself)", ylabel="JFB direction", title="a weight of T each: the two are one")
    same.legend(frameon=False)
    spread.set(
        xlabel="singular values of J = I − ∂T/∂u", ylabel="entries of 20 networks", title="what it rescales by: 1 − γ to 1 + γ"
    )
    spread.legend(frameon=False)
    _finish(figure, path)


def draw_descent(path: Path) -> None:
    figure, ((by_gamma, failing), (inexact, series)) = plt.subplots(2, 2, figsize=(9.5, 7.4), layout="constrained")
    _draw_angles(by_gamma)
    _draw_failing(failing)
    _draw_inexact(inexact)
    _draw_series(series)
    _finish(figure, path)


def _draw_angles(axes: plt.Axes) -> None:
    """Theorem 0.2."""
    factors = np.linspace(0.02, 0.99, 25)
    alone, everything = [], []
    for gamma in factors:
        torch.manual_seed(0)
        network = ImplicitMLP((5,), 3, width=WIDTH, contraction=gamma, slope=1.0).double().eval()
        nn.init.orthogonal_(network.latent.weight)
        network.encode.requires_grad_(False)
        alone.append(float(angles(dense_matrices(network, input_of(), LABEL), 20_000).amax()))
        everything.append(
            max(float(angles(dense_matrices(network_of(gamma, k), input_of(k), LABEL), 2000).amax()) for k in range(5))
        )
    axes.plot(factors, np.degrees(np.arcsin(factors)), "k--", linewidth=1, label="arcsin γ: bound for κ = 1")
    axes.plot(factors, alone, ".", color="#2a6f97", label="weights of W alone, κ = 1")
    axes.plot(factors, everything, "x", color="#e8a33d", label="all weights of T, κ about 2.7")
    axes.axhline(90, color="#b5443c", linewidth=1)
    axes.text(0.02, 87, "descent is lost above", color="#b5443c", va="top")
    axes.set(
        xlabel="contraction factor γ",
        ylabel="largest angle (°)",
        title="the angle to the gradient, over many losses",
        ylim=(0, 95),
    )
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def _draw_failing(axes: plt.Axes) -> None:
    """Where the assumption of Theorem 0.2 fails."""
    conditions = np.geomspace(1, 1000, 60)
    origin = torch.zeros(1, 2, dtype=torch.float64)
    for gamma in FACTORS:
        found = [dense_matrices(Sheared(gamma, condition), origin, LABEL) for condition in conditions]
        axes.semilogx(conditions, [cosine(one.jfb, one.exact) for one in found], color=COLOURS[gamma], label=f"γ = {gamma:g}")
        axes.plot(1 / gamma, 0, "|", color=COLOURS[gamma], markersize=14)
        axes.plot(4 / gamma**2, 0, "o", color=COLOURS[gamma], markersize=6)
    axes.axhline(0, color="#b5443c", linewidth=1)
    axes.set(
        xlabel="κ(MᵀM)     |: 1/γ, promised below     o: 4/γ², lost above",
        ylabel="cosine to the gradient",
        title="ill-conditioned MᵀM: JFB climbs",
    )
    axes.legend(frameon=False)


def _draw_inexact(axes: plt.Axes) -> None:
    """Corollary 0.1."""
    distances = np.geomspace(1e-3, 1000, 37)
    for gamma in FACTORS:
        smallest = np.ones(len(distances))
        for seed in range(4):
            network, inputs = network_of(gamma, seed), input_of(seed)
            with torch.no_grad():
                limit = fixed_point(network, network.inject(inputs))
            exact = dense_matrices(network, inputs, LABEL).exact
            generator = torch.Generator().manual_seed(seed)
            for k, distance in enumerate(distances):
                for _ in range(12):
                    away = torch.randn(limit.shape, generator=generator, dtype=torch.float64)
                    point = limit + distance * limit.norm() * away / away.norm()
                    smallest[k] = min(smallest[k], cosine(dense_matrices(network, inputs, LABEL, point).jfb, exact))
        axes.semilogx(distances, smallest, ".-", color=COLOURS[gamma], label=f"γ = {gamma:g}")
    axes.axhline(0, color="#b5443c", linewidth=1)
    axes.set(
        xlabel="ε: distance from the fixed point, of its norm",
        ylabel="smallest cosine to the gradient",
        title="an inexact fixed point, 48 directions away from it",
    )
    axes.legend(frameon=False)


def _draw_series(axes: plt.Axes) -> None:
    """Eq. 22."""
    terms = np.arange(0, 26)
    for gamma in FACTORS:
        network, inputs = network_of(gamma), input_of()
        exact = dense_matrices(network, inputs, LABEL).exact
        errors = np.array(
            [float((direction(network, inputs, Neumann(terms=int(k))) - exact).norm() / exact.norm()) for k in terms]
        )
        axes.semilogy(terms, errors, ".-", color=COLOURS[gamma], label=f"γ = {gamma:g}")
        axes.semilogy(terms, errors[0] * gamma**terms, "--", color=COLOURS[gamma], linewidth=1)
    axes.set(
        xlabel="k, terms of the Neumann series (0 is JFB)",
        ylabel="relative error of the gradient",
        title="dashed: γᵏ",
        ylim=(1e-13, 2),
    )
    axes.legend(frameon=False)


def _finish(figure: plt.Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def main(out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("docs")) -> None:
    """Draw the pictures."""
    draw_preconditioning(out / "theory_preconditioning.png")
    draw_descent(out / "theory_descent.png")


if __name__ == "__main__":
    typer.run(main)
