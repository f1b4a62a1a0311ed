"""Solver times: the recommended solver takes the least time, which need not be the fewest iterations."""

import torch
from torch import Tensor

from jfb import ModelConfig, solve
from jfb.architectures import ImplicitMLP, build
from jfb.config import ArchitectureSpec, InputSpec, Serving
from jfb.network import ImplicitNetwork
from jfb.solvers import Anderson
from training.evaluation.solver_times import time_solvers

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    architecture=ArchitectureSpec(name="implicit_mlp", arguments={}),
    input=InputSpec(shape=(4,), kind="vector"),
    classes=["no", "yes", "perhaps"],
    serving=Serving(tolerance=1e-2, max_iterations=500),
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(ImplicitMLP):
    """A network that takes a second for each call of ``step``."""

    clock: Clock

    def folded(self) -> ImplicitNetwork:
        return self

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        self.clock.now += 1
        return super().step(state, injection)


def slow_network() -> Timed:
    torch.manual_seed(0)
    network = Timed((4,), 3, width=4, contraction=0.99, slope=1.0)
    network.latent.weight.data *= 50
    network.constrain()
    network.clock = Clock()
    return network.eval()


def test_fewer_iterations_are_recommended_where_the_step_is_what_takes_time() -> None:
    network = slow_network()
    inputs = torch.randn(100, 4)
    times = time_solvers(network, CONFIG, inputs, 1e-4, device=CPU, clock=network.clock)
    assert times.iterations.keys() == times.microseconds.keys() == {"picard", "anderson"}
    assert times.iterations["anderson"] < 0.8 * times.iterations["picard"]
    assert times.recommended == "anderson"
    assert times.tolerances == [1e-2, 1e-4]
    found = [solve(network, network.inject(inputs), tolerance=t, max_iterations=500, solver=Anderson()) for t in (1e-2, 1e-4)]
    mean = torch.cat([solution.iterations for solution in found]).double().mean().item()
    assert abs(times.iterations["anderson"] - mean) < 0.05


def test_the_models_own_solver_stays_where_another_is_not_clearly_faster() -> None:
    network = build("implicit_mlp", (4,), 3, {"width": 16}).eval()

    class Still(Clock):
        """Every solver takes the same time."""

        def __call__(self) -> float:
            self.now += 1
            return self.now

    times = time_solvers(network, CONFIG, torch.randn(70, 4), 1e-4, device=CPU, clock=Still())
    assert times.microseconds["picard"] == times.microseconds["anderson"]
    assert times.recommended == "picard"
