"""Label stops: against the labels of exact fixed points, and against iterations in closed form."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jfb import ImplicitNetwork, LabelStop, ResidualNorm, Status, predict, solve
from jfb.architectures import ImplicitMLP, ImplicitResNet
from jfb.architectures.monotone_conv import MonotoneConv
from jfb.architectures.monotone_mlp import MonotoneMLP
from jfb.config import LabelCalibration, Serving
from jfb.label_stop import Kind, label_tolerance
from jfb.monotone_network import MonotoneNetwork
from jfb.solvers import SOLVERS, Anderson, Mixing, PeacemanRachford, Solver
from tests.jfb.networks import Affine, affine, small_mlp, small_monotone_mlp, small_resnet

CALIBRATION = LabelCalibration(
    safety=1.5,
    sensitivity=2.0,
    tolerance=1e-5,
    validation_inputs=1000,
    validation_differing=0,
    inputs=1000,
    differing=1,
    iterations=4.5,
)


def averaging_resnet(*, seed: int, contraction: float) -> ImplicitResNet:
    """As ``small_resnet``, with logits that are read from averages over the positions."""
    torch.manual_seed(seed)
    network = ImplicitResNet((1, 6, 6), 3, channels=(4,), pool=(2,), contraction=contraction, average=True)
    with torch.no_grad():
        network.latent.weight.mul_(50)
    network.constrain()
    return network.double().eval()


def monotone_mlp(*, seed: int, contraction: float) -> MonotoneMLP:
    return small_monotone_mlp(seed=seed, monotonicity=2 - 1.5 * contraction, scale=1.0)


def averaging_monotone_conv(*, seed: int, contraction: float) -> MonotoneConv:
    torch.manual_seed(seed)
    network = MonotoneConv((1, 6, 6), 3, channels=(4,), pool=(2,), monotonicity=2 - 1.5 * contraction, average=True)
    return network.double().eval()


NETWORKS = {
    "mlp": small_mlp,
    "resnet": small_resnet,
    "averaging resnet": averaging_resnet,
    "monotone mlp": monotone_mlp,
    "averaging monotone conv": averaging_monotone_conv,
}


def inputs_of(network: ImplicitNetwork, rows: int, seed: int) -> Tensor:
    shape = (5,) if isinstance(network, ImplicitMLP | MonotoneMLP) else (1, 6, 6)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *shape, generator=generator, dtype=torch.float64) * 2 - 0.5


def between_classes(network: ImplicitMLP | ImplicitResNet | MonotoneNetwork, inputs: Tensor) -> None:
    """Shift the logits so that the classes are about even on the inputs: labels then change on the way."""
    point = solve(network, network.inject(inputs), tolerance=1e-10, max_iterations=5000).fixed_point
    with torch.no_grad():
        network.classify.bias -= network.readout(point).mean(0)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    solver=st.sampled_from(["picard", "anderson"]),
    contraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 10_000),
    spread=st.floats(-1, 3),
)
def test_a_guaranteed_label_is_always_that_of_the_exact_fixed_point(
    name: str, solver: str, contraction: float, seed: int, spread: float
) -> None:
    network = NETWORKS[name](seed=seed, contraction=contraction)
    inputs = inputs_of(network, 16, seed)
    between_classes(network, inputs)
    stop = LabelStop.guarantee(network)
    assert stop is not None
    start = network.initial_state(network.inject(inputs))
    start = start + 10**spread * torch.randn(start.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = solve(
        network,
        network.inject(inputs),
        tolerance=1e-9,
        max_iterations=5000,
        solver=SOLVERS[solver](),
        start=start,
        label_stop=stop,
    )
    exact = network.readout(solve(network, network.inject(inputs), tolerance=1e-14, max_iterations=5000).fixed_point)
    logits = network.readout(found.fixed_point)
    assert set(found.status) <= {Status.LABEL_STABLE, Status.CONVERGED}
    stable = torch.tensor([status is Status.LABEL_STABLE for status in found.status])
    assert found.stability is not None
    assert found.stability.stable[stable].all()
    assert (logits.argmax(1) == exact.argmax(1))[stable].all()
    # And no rival gains more on the way to the fixed point than the bound allows, however the row ended.
    lipschitz = network.readout_lipschitz()
    assert lipschitz is not None
    label = logits.argmax(1, keepdim=True)
    lead, exact_lead, slope = logits.gather(1, label) - logits, exact.gather(1, label) - exact, lipschitz[label.squeeze(1)]
    rival = (lead / slope).scatter(1, label, torch.inf).argmin(1, keepdim=True)
    remaining = found.stability.bound.unsqueeze(1) / slope.gather(1, rival)
    assert (lead - exact_lead <= slope * remaining + 1e-9).all()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_most_rows_stop_by_their_label_and_earlier(name: str) -> None:
    network = NETWORKS[name](seed=3, contraction=0.8)
    inputs = inputs_of(network, 200, 3)
    between_classes(network, inputs)
    with_label = predict(network, inputs, tolerance=1e-8, max_iterations=1000, label_stop=LabelStop.guarantee(network))
    without = predict(network, inputs, tolerance=1e-8, max_iterations=1000)
    assert with_label.solution.status.count(Status.LABEL_STABLE) > 150
    assert with_label.solution.iterations.double().mean() < 0.7 * without.solution.iterations.double().mean()
    assert (with_label.logits.argmax(1) == without.logits.argmax(1)).all()
    assert without.solution.stability is None


class Threshold(Affine):
    """``u = ½ u + 1``, so ``u_k = 2 − 2^{1−k}``; the label is 0 where ``u`` exceeds the input, and 1 otherwise."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([[0.5]], dtype=torch.float64))

    def inject(self, inputs: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(inputs), inputs], 1)

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(injection[:, 0]), injection[:, 1]], 1)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return torch.stack([0.5 * state[:, 0] + injection[:, 0], injection[:, 1]], 1)

    def readout(self, state: Tensor) -> Tensor:
        return state  # one logit is u, the other the threshold

    def contraction_bound(self) -> float:
        return 0.5

    def readout_lipschitz(self) -> Tensor:
        return torch.ones(2, 2)  # of u − threshold in u, which is all that moves


@pytest.mark.parametrize(
    ("threshold", "label", "guaranteed", "estimated"),
    [
        (2.1, 1, 1, 2),  # u_k never passes it, which an exact bound shows at once; an estimate needs an iteration that moves less
        (0.5, 0, 2, 2),  # u_1 = 1 is over it by no more than the bound
        (1.9, 0, 6, 6),  # u_5 is over it, by less than the bound
        (2.0, 1, None, None),  # the label of the limit is open for ever
    ],
)
def test_the_iteration_in_which_a_row_stops_is_the_one_in_closed_form(
    threshold: float, label: int, guaranteed: int | None, estimated: int | None
) -> None:
    network = Threshold()
    stops = {LabelStop.guarantee(network): guaranteed, LabelStop(Kind.ESTIMATE, 1.0): estimated}
    for stop, iterations in stops.items():
        found = predict(
            network,
            torch.tensor([[threshold]], dtype=torch.float64),
            tolerance=1e-9,
            max_iterations=100,
            residual_norm=ResidualNorm.ABSOLUTE,
            label_stop=stop,
        )
        assert found.solution.status == [Status.CONVERGED if iterations is None else Status.LABEL_STABLE]
        assert found.logits.argmax(1).tolist() == [label]
        if iterations is not None:
            assert found.solution.iterations.tolist() == [iterations]
            assert found.solution.stability is not None
            assert found.solution.stability.bound.tolist() == [2.0 ** (1 - iterations)]
            assert found.solution.stability.margin.tolist() == pytest.approx([abs(2 - 2.0 ** (1 - iterations) - threshold)])


def test_the_safety_factor_multiplies_the_bound() -> None:
    network, inputs = Threshold(), torch.tensor([[1.9]], dtype=torch.float64)
    arguments = {"tolerance": 1e-9, "max_iterations": 100, "residual_norm": ResidualNorm.ABSOLUTE}
    found = predict(network, inputs, label_stop=LabelStop(Kind.ESTIMATE, 1.0, safety=8.0), **arguments)
    # 0.1 − 2^{1−k} > 8 · 2^{1−k} from k = 8 on.
    assert found.solution.iterations.tolist() == [8]
    assert found.solution.stability is not None
    assert found.solution.stability.bound.tolist() == [8 * 2.0**-7]


@pytest.mark.parametrize("kind", list(Kind))
def test_a_row_does_the_same_alone_and_in_a_batch(kind: Kind) -> None:
    network = small_resnet(seed=5, contraction=0.9)
    inputs = inputs_of(network, 40, 5)
    between_classes(network, inputs)
    stop = LabelStop.guarantee(network) if kind is Kind.GUARANTEE else LabelStop(kind, 1.0, safety=2.0)
    assert stop is not None
    caps = torch.arange(40) + 1
    batch = predict(network, inputs, tolerance=1e-6, max_iterations=caps, label_stop=stop).solution
    assert {*batch.status} == {Status.LABEL_STABLE, Status.MAX_ITERATIONS}
    assert batch.stability is not None
    for row in range(40):
        alone = predict(network, inputs[row : row + 1], tolerance=1e-6, max_iterations=int(caps[row]), label_stop=stop).solution
        assert alone.stability is not None
        assert (alone.status[0], int(alone.iterations)) == (batch.status[row], int(batch.iterations[row]))
        assert float(alone.stability.margin) == pytest.approx(float(batch.stability.margin[row]), rel=1e-9)
        assert float(alone.stability.bound) == pytest.approx(float(batch.stability.bound[row]), rel=1e-6)


def test_an_iteration_that_moves_ever_further_settles_no_label() -> None:
    found = solve(
        Affine(1.2 * torch.eye(4, dtype=torch.float64)),
        torch.ones(3, 4, dtype=torch.float64) + torch.eye(3, 4, dtype=torch.float64),
        tolerance=1e-9,
        max_iterations=30,
        label_stop=LabelStop(Kind.ESTIMATE, 1e-9),
    )
    assert found.status == [Status.MAX_ITERATIONS] * 3
    assert found.stability is not None
    assert found.stability.margin.isfinite().all()
    assert found.stability.bound.isinf().all()


@pytest.mark.parametrize("kind", list(Kind))
def test_both_kinds_support_every_solver_that_evaluates_the_map_itself(kind: Kind) -> None:
    network = small_monotone_mlp()
    stop = LabelStop(kind, 1.0)
    assert stop.solvers == ["picard", "anderson", "mixing"]
    with pytest.raises(ValueError, match=r"solver: must be one of picard, anderson, mixing for label stops \(got Peaceman"):
        solve(
            network,
            network.inject(inputs_of(network, 1, 0)),
            tolerance=1e-3,
            max_iterations=9,
            solver=PeacemanRachford(),
            label_stop=stop,
        )


def mixing_for(network: ImplicitNetwork) -> Mixing:
    channels = network.initial_state(network.inject(inputs_of(network, 1, 0))).shape[1]
    return Mixing(1.2 * torch.eye(channels, dtype=torch.float64), torch.full((channels,), 0.1, dtype=torch.float64), 0.8)


@pytest.mark.parametrize("name", ["mlp", "resnet", "averaging resnet"])
@pytest.mark.parametrize("make", [Anderson, mixing_for], ids=["anderson", "mixing"])
def test_a_row_stops_by_its_label_with_an_accelerated_solver_too(name: str, make: Callable[..., Solver]) -> None:
    network = NETWORKS[name](seed=3, contraction=0.8)
    inputs = inputs_of(network, 200, 3)
    between_classes(network, inputs)
    exact = predict(network, inputs, tolerance=1e-10, max_iterations=5000).logits.argmax(1)
    solver = make(network) if make is mixing_for else make()
    for stop in (LabelStop.guarantee(network), LabelStop(Kind.ESTIMATE, 1.0, distance=4.0)):
        found = predict(network, inputs, tolerance=1e-8, max_iterations=1000, solver=solver, label_stop=stop)
        assert found.solution.status.count(Status.LABEL_STABLE) > 150
        assert (found.logits.argmax(1) == exact).all()


def test_the_guarantee_goes_before_the_estimate_and_a_network_without_either_has_none() -> None:
    contraction, anything = small_mlp(), affine()
    calibrated = Serving(label_calibration=CALIBRATION)
    guarantee, estimate = LabelStop.of(contraction, calibrated), LabelStop.of(anything, calibrated)
    assert guarantee is not None
    assert estimate is not None
    assert (guarantee.kind, estimate.kind) == (Kind.GUARANTEE, Kind.ESTIMATE)
    assert LabelStop.of(anything, Serving()) is None
    assert (label_tolerance(calibrated), label_tolerance(Serving()), label_tolerance(Serving(tolerance=1e-7))) == (
        1e-5,
        1e-4,
        1e-7,
    )


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_readout_is_as_steep_as_it_says_and_not_steeper(name: str) -> None:
    network = NETWORKS[name](seed=1, contraction=0.5)
    states = network.initial_state(network.inject(inputs_of(network, 30, 1)))
    stated = network.readout_lipschitz()
    assert stated is not None
    others = states + torch.randn(states.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    change = network.readout(others) - network.readout(states)
    distance = (others - states).flatten(1).norm(dim=1)
    seen = (change[:, :, None] - change[:, None, :]).abs() / distance[:, None, None]
    assert (seen <= stated * (1 + 1e-9)).all()
    # Along the gradient of a difference it is reached, where the leaky ReLU of the MLP has slope one: far on the positive side.
    state = states[:1].abs() + 1
    gradient = torch.autograd.functional.jacobian(lambda u: network.readout(u)[0, 0] - network.readout(u)[0, 1], state)
    assert float(gradient.norm()) == pytest.approx(float(stated[0, 1]), rel=1e-6)
