"""Rivals: each has as many parameters as the recipe's network, learns, and is measured."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from jfb.architectures import build
from jfb.config import InputSpec
from tests.jfb.networks import small_mlp
from training.__main__ import main
from training.data import load_data
from training.errors import RecipeError, TrainingError
from training.loop.jacobian_penalty import jacobian_penalty
from training.loop.network import count_parameters
from training.loop.train import train
from training.recipe import Recipe, load_recipe
from training.rivals.compare import compare_rivals
from training.rivals.neural_ode import NeuralODE
from training.rivals.table import RIVALS, fit_width, network_size, rival_recipe

CPU = torch.device("cpu")
DIGITS = InputSpec(shape=(1, 8, 8), kind="image", low=0, high=16)
MNIST = InputSpec(shape=(1, 28, 28), kind="image", low=0, high=255)
SMALL = """
data: {source: sklearn/digits, test: 0.2}
network: {name: implicit_resnet, arguments: {channels: [18], pool: [2], contraction: 0.9}}
optimisation: {epochs: 1, batch_size: 50, learning_rate: 0.01}
"""
ITERATING = [name for name, rival in RIVALS.items() if rival.augmentation is None]
FLOWS = [name for name, rival in RIVALS.items() if rival.augmentation is not None]


@pytest.mark.parametrize("name", ITERATING)
@pytest.mark.parametrize(("recipe", "spec"), [("digits", DIGITS), ("mnist", MNIST)])
def test_a_rival_that_iterates_is_a_valid_recipe_of_the_same_size(name: str, recipe: str, spec: InputSpec) -> None:
    base = load_recipe(recipe)
    chosen = rival_recipe(base, name, spec, 10)
    assert network_size(chosen, spec, 10) == pytest.approx(network_size(base, spec, 10), rel=0.04)
    assert chosen.optimisation.model_copy(update={"jacobian_penalty": 0.0}) == base.optimisation
    assert (chosen.data, chosen.augment, chosen.serving.tolerance) == (base.data, base.augment, base.serving.tolerance)
    assert chosen.network.name == ("monotone_conv" if RIVALS[name].monotone else base.network.name)


def test_vectors_have_rivals_too() -> None:
    base = load_recipe("digits").changed({"network": {"name": "implicit_mlp", "arguments": {"width": 24, "contraction": 0.8}}})
    spec = InputSpec(shape=(10,), kind="vector")
    chosen = rival_recipe(base, "monotone_peaceman_rachford", spec, 3)
    assert chosen.network.name == "monotone_mlp"
    assert network_size(chosen, spec, 3) == pytest.approx(network_size(base, spec, 3), rel=0.05)


def test_the_shipped_recipes_of_rivals_are_what_is_compared() -> None:
    base = load_recipe("digits")
    for rival, shipped in (("deq", "digits_deq"), ("monotone_jfb", "digits_monotone")):
        found = rival_recipe(base, rival, DIGITS, 10).model_dump(exclude={"name"})
        expected = load_recipe(shipped).model_dump(exclude={"name"})
        found["network"]["arguments"] = (
            {"monotonicity": 1.0, **found["network"]["arguments"]} if "monotone" in rival else found["network"]["arguments"]
        )
        assert found == expected


def test_a_network_is_widened_to_the_nearest_budget() -> None:
    arguments = {"channels": [8, 16], "pool": [2, 1]}

    def make(fit: dict[str, object]) -> torch.nn.Module:
        return build("monotone_conv", (1, 8, 8), 10, fit)

    budget = 9_000
    found = fit_width(arguments, budget, make)
    assert found["channels"][0] == round(found["channels"][1] / 2)
    nearest = abs(count_parameters(make(found)) - budget)
    for last in range(found["channels"][1] - 2, found["channels"][1] + 3):
        other = {**arguments, "channels": [max(1, round(last / 2)), last]}
        assert nearest <= abs(count_parameters(make(other)) - budget)


@pytest.mark.parametrize("augmentation", [0, 5])
@pytest.mark.parametrize("shape", [(7,), (1, 8, 8)])
def test_a_neural_ode_solves_its_equation_and_its_adjoint_gives_the_gradient(shape: tuple[int, ...], augmentation: int) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    network = NeuralODE(shape, 3, width=6, channels=[4], pool=[2], augmentation=augmentation).double().eval()
    inputs = torch.rand(5, *shape, dtype=torch.float64)
    logits = network(inputs)

    features = network.stem(network.standardise(inputs))
    features = torch.cat([features, features.new_zeros(5, augmentation, *features.shape[2:])], 1)
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    end = torchdiffeq.odeint(network.field, features, times, method="rk4")[-1]
    exact = network.classify(end.flatten(1))
    torch.testing.assert_close(logits, exact, rtol=0, atol=5e-3)

    gradients = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
    expected = torch.autograd.grad(exact.square().sum(), list(network.parameters()))
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (gradients, expected))
    assert float((one - other).norm() / other.norm()) < 0.02


def test_a_missing_torchdiffeq_is_reported_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(TrainingError, match=r"pip install torchdiffeq"):
        NeuralODE((7,), 3)
    with pytest.raises(TrainingError, match=r"pip install torchdiffeq"):
        next(compare_rivals(load_recipe("digits"), ["jfb", "neural_ode"], device=CPU, console=console))


def test_the_penalty_is_the_squared_jacobian_on_average_and_reduces_it() -> None:
    network = small_mlp()
    injection = torch.randn(1, 6, dtype=torch.float64)
    state = torch.randn(1, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda u: network.step(u, injection), state).view(6, 6)
    expected = float(jacobian.square().sum() / 6)
    many = 20_000
    torch.manual_seed(0)
    estimates = jacobian_penalty(network, state.expand(many, -1), injection.expand(many, -1))
    assert estimates.shape == (many,)
    assert float(estimates.detach().mean()) == pytest.approx(expected, rel=0.03)
    estimates.mean().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        network.latent.weight -= 0.01 * network.latent.weight.grad
        after = torch.autograd.functional.jacobian(lambda u: network.step(u, injection), state).view(6, 6)
    assert float(after.square().sum() / 6) < expected


@pytest.mark.slow
@pytest.mark.long
def test_monotone_networks_learn_under_jfb_and_under_the_exact_gradient(quick: Recipe, console: Console) -> None:
    data = load_data(quick, console)
    base = quick.changed({"optimisation.epochs": 3})
    for name in ("monotone_jfb", "monotone_peaceman_rachford"):
        chosen = rival_recipe(base, name, data.input, len(data.classes))
        trained = train(chosen, data, device=CPU, console=console)
        assert trained.test.accuracy > 0.7
        assert trained.test.converged == 1
        assert trained.contraction_bound is not None
        assert trained.contraction_bound < 1


def test_a_penalty_of_the_jacobian_makes_a_network_that_contracts_more(quick: Recipe, console: Console) -> None:
    data = load_data(quick, console)
    plain, penalised = (
        train(quick.changed({"optimisation.jacobian_penalty": weight}), data, device=CPU, console=console).contraction_factor
        for weight in (0.0, 10.0)
    )
    assert penalised < plain - 0.01


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_compare_rivals_writes_one_line_per_rival_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchdiffeq")
    out = tmp_path / "out"
    chosen = ["monotone_jfb", "augmented_neural_ode"]
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    arguments = [
        "--rivals",
        "--recipe",
        str(recipe),
        "--only",
        ",".join(chosen),
        "--epochs",
        "1",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["training", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    with (out / "rivals.csv").open() as file:
        rows = {row["rival"]: row for row in csv.DictReader(file)}
    assert list(rows) == chosen
    for row in rows.values():
        assert float(row["test_accuracy"]) > 0.5
        assert float(row["test_cost"]) > 1
        assert float(row["memory_mb"]) > float(row["step_memory_mb"]) > 0
        assert int(row["parameters"]) == pytest.approx(6_004, rel=0.04)
    with Image.open(out / "rivals.png") as picture:
        picture.verify()
    page = (out / "rivals.md").read_text()
    assert "| augmented neural ODE (`augmented_neural_ode`) | " in page
    assert "python -m training compare --rivals" in page
    with (out / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_recipe_without_a_stem_to_share_is_rejected(console: Console) -> None:
    recipe = load_recipe("digits").changed({"network": {"name": "authors_resnet", "arguments": {}}})
    with pytest.raises(
        RecipeError, match=r"network.name: must be implicit_resnet or implicit_mlp to compare rivals \(got 'authors_resnet'\)"
    ):
        next(compare_rivals(recipe, ["jfb"], device=CPU, console=console))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search.solver": "newton"}, "search.solver: must be one of picard"),
        ({"search.solver": "peaceman_rachford"}, "search.solver: must be one of picard, anderson for"),
        ({"serving.solver": "forward_backward"}, "serving.solver: must be one of picard, anderson for"),
        (
            {"network": {"name": "neural_ode"}},
            r"network.name: 'neural_ode' is a rival: train it with python -m training compare --rivals",
        ),
    ],
)
def test_invalid_solvers_and_networks_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits").changed(changes)


def test_an_unknown_rival_is_an_error_that_lists_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "compare", "--recipe", "digits", "--rivals", "--only", "jfb,transformer"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--only must be one of" in capsys.readouterr().err
