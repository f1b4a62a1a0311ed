"""Correctness of a device: its float32 against float64 on the CPU.

The networks are untrained and have the same weights on both; the device computes in float32 without TF32. Compares the maps, the
predictions and iteration counts of every solver, every gradient, and two epochs of training. Prints one line per comparison, with
the error and the limit. Exits with status 1 if any error exceeds its limit.

    python -m benchmarks.gpu_check              # CUDA if there is one, else the CPU's own float32
"""

import copy
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import jfb
from jfb import ImplicitNetwork
from jfb.architectures import build
from jfb.gradients import GRADIENTS, Search
from jfb.solvers import SOLVERS, solvers_for
from training.data import load_data
from training.device import choose_device
from training.loop.train import train
from training.recipe import load_recipe

ROUNDING = 1e-4
"""Maximum relative L2 error of float32 after some tens of iterations."""
GRADIENT_ERROR = 2e-2
"""Maximum relative L2 error of gradients: rounding can select another maximum, or the other side of a ReLU's kink."""
NETWORKS = {
    "implicit_mlp": ("implicit_mlp", (16,), {"width": 64, "contraction": 0.9}),
    "monotone_mlp": ("monotone_mlp", (16,), {"width": 64}),
    "mnist": ("implicit_resnet", (1, 28, 28), dict(load_recipe("mnist").network.arguments)),
    "cifar10_small": ("implicit_resnet", (3, 32, 32), {**load_recipe("cifar10_small").network.arguments, "dropout": 0.0}),
}


@dataclass(frozen=True)
class Finding:
    """One comparison with float64."""

    name: str
    found: float
    allowed: float

    @property
    def good(self) -> bool:
        return self.found <= self.allowed

    def __str__(self) -> str:
        return f"{'good' if self.good else 'wrong'}: {self.name}: {self.found:.1e}, allowed {self.allowed:.0e}"


def run_checks(checks: Mapping[str, Iterable[Finding]], *, show_all: bool) -> int:
    """Run checks by name, one after the other, and return the exit status: 0 if all were made and everything is within limits.

    Prints what is wrong as soon as it is found. A check that raises does not keep the others from being made, and after SIGINT
    the names of those that are left are printed.

    Args:
        show_all: whether to print findings that are within limits, too.
    """
    findings: list[Finding] = []
    left, raised = list(checks), 0
    try:
        for name, check in checks.items():
            try:
                for finding in check:
                    findings.append(finding)
                    if show_all or not finding.good:
                        print(finding)
            except Exception as error:
                traceback.print_exc(file=sys.stdout)
                print(f"wrong: {name}: {error!r}")
                raised += 1
            left.remove(name)
    except KeyboardInterrupt:
        print(f"not checked: {'; '.join(left)}")
    good = sum(finding.good for finding in findings)
    print(f"{good} of {len(findings)} within limits")
    return int(good < len(findings) or raised > 0 or bool(left))


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error of all entries; infinite where one is not finite."""
    difference = float((found.cpu().double() - expected).norm() / expected.norm().clamp_min(1e-300))
    return difference if difference == difference else float("inf")


def check_network(name: str, device: torch.device, rows: int) -> Iterator[Finding]:
    """Compare the maps, predictions and gradients of one network."""
    architecture, shape, arguments = NETWORKS[name]
    torch.manual_seed(0)
    reference = build(architecture, shape, 10, arguments).double()
    network = copy.deepcopy(reference).to(device, torch.float32)
    inputs = torch.rand(rows, *shape, dtype=torch.float64) * 255
    labels = torch.arange(rows) % 10
    on_device = inputs.to(device, torch.float32)
    reference.eval(), network.eval()
    yield from check_maps(name, reference, network, inputs, on_device)
    yield from check_predictions(name, reference, network, inputs, on_device)
    yield from check_gradients(name, reference, network, (inputs, labels), (on_device, labels.to(device)))


@torch.no_grad()
def check_maps(
    name: str, reference: ImplicitNetwork, network: ImplicitNetwork, inputs: Tensor, on_device: Tensor
) -> Iterator[Finding]:
    injection = reference.inject(inputs)
    state = reference.initial_state(injection)
    there, here = injection.to(on_device), state.to(on_device)
    yield Finding(f"{name}: inject", error(network.inject(on_device), injection), ROUNDING)
    yield Finding(f"{name}: step", error(network.step(here, there), reference.step(state, injection)), ROUNDING)
    yield Finding(f"{name}: readout", error(network.readout(here), reference.readout(state)), ROUNDING)


def check_predictions(
    name: str, reference: ImplicitNetwork, network: ImplicitNetwork, inputs: Tensor, on_device: Tensor
) -> Iterator[Finding]:
    for solver in solvers_for(type(network)):
        for tolerance in (1e-1, 1e-3):
            expected, found = (
                jfb.predict(one, rows, tolerance=tolerance, max_iterations=200, solver=SOLVERS[solver]())
                for one, rows in ((reference, inputs), (network, on_device))
            )
            counts = found.solution.iterations.cpu() - expected.solution.iterations
            same = counts == 0
            where = f"{name}: {solver} at {tolerance:g}"
            # A residual may round to the other side of the tolerance.
            yield Finding(f"{where}: share of different counts", float((~same).double().mean()), 0.02)
            yield Finding(
                f"{where}: logits", error(found.logits[same.to(on_device.device)], expected.logits[same]), 10 * ROUNDING
            )


def check_gradients(
    name: str,
    reference: ImplicitNetwork,
    network: ImplicitNetwork,
    on_cpu: tuple[Tensor, Tensor],
    on_device: tuple[Tensor, Tensor],
) -> Iterator[Finding]:
    search = Search(torch.finfo(torch.float32).tiny, 25)  # always 25 iterations, so that both differentiate at the same iterate
    for gradient in GRADIENTS:
        directions = []
        for one, (inputs, labels) in ((reference, on_cpu), (network, on_device)):
            one.zero_grad()
            state, _ = GRADIENTS[gradient]()(one, one.inject(inputs), search)
            F.cross_entropy(one.readout(state), labels).backward()
            directions.append(torch.cat([p.grad.flatten().cpu() for p in one.parameters() if p.grad is not None]))
        yield Finding(f"{name}: {gradient} gradient", error(directions[1], directions[0]), GRADIENT_ERROR)


def check_training(device: torch.device) -> Iterator[Finding]:
    """Compare a run on the device, which may learn with TF32, with one on the CPU, in float32; neither is augmented."""
    recipe = load_recipe("digits").changed({"optimisation.epochs": 2, "augment": {}})
    data = load_data(recipe, Console(quiet=True))
    losses = [
        torch.tensor([epoch.train_loss for epoch in train(recipe, data, device=one, console=Console(quiet=True)).history])
        for one in (torch.device("cpu"), device)
    ]
    yield Finding("digits: losses of two epochs", error(losses[1], losses[0].double()), 0.02)


def main(
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    rows: Annotated[int, typer.Option(min=10, help="Inputs per network.")] = 64,
) -> None:
    """Compare a device's float32 with float64 on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    on = choose_device(device)
    print(f"{torch.cuda.get_device_name(on) if on.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    checks = {name: check_network(name, on, rows) for name in NETWORKS} | {"training": check_training(on)}
    sys.exit(run_checks(checks, show_all=True))


if __name__ == "__main__":
    typer.run(main)
