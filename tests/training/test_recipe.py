"""Recipes: what they accept, and the errors for what they do not."""

from pathlib import Path

import pytest

from jfb import architectures
from jfb.architectures import ImplicitResNet, build
from training.errors import RecipeError, TrainingError
from training.loop.network import check_before_data
from training.recipe import AugmentRecipe, load_recipe, shipped_recipes

MINIMAL = """
data: {source: sklearn/digits, test: 0.2}
network: {name: implicit_resnet}
"""


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_named_after_its_file(name: str) -> None:
    assert load_recipe(name).name == name


def test_digits_and_mnist_are_shipped() -> None:
    assert {"digits", "mnist"} <= set(shipped_recipes())


def test_a_recipe_needs_only_data_and_network_and_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert recipe.data.test == 0.2
    assert recipe.gradient.name == "jfb"


def test_an_unknown_key_is_an_error_with_the_file_and_the_known_keys(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL + "optimisation: {epohcs: 3}\n")
    assert "mine.yaml: optimisation.epohcs: unknown key" in message
    assert "epochs" in message


def test_an_unknown_section_is_an_error(tmp_path: Path) -> None:
    assert "optimization: unknown key: must be one of name, data" in refusal(tmp_path, MINIMAL + "optimization: {}\n")


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xa7\x00")
    with pytest.raises(RecipeError, match=r"mine.yaml: not valid YAML: unacceptable character"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL + "optimisation: {learning_rate: -1}\nserving: {tolerance: 0}\n")
    assert "optimisation.learning_rate: must be greater than 0 (got -1)" in message
    assert "serving.tolerance" in message


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("gradient: {name: exact}", "gradient.name: must be one of jfb, neumann"),
        ("gradient: {name: neumann, options: {terms: -1}}", "terms: must be an integer of at least 0 (got -1)"),
        ("gradient: {name: jfb, options: {terms: 1}}", "gradient.options: jfb"),
        ("search: {tolerance: .nan}", "search.tolerance"),
        (
            "serving: {solver: newton}",
            "serving.solver: must be one of picard, anderson, forward_backward, peaceman_rachford, mixing (got 'newton')",
        ),
        ("name: ../elsewhere", "name: "),
        ("augment: {rotate: 200}", "augment.rotate"),
    ],
)
def test_wrong_values_are_rejected_with_the_key(tmp_path: Path, addition: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL + addition + "\n")


@pytest.mark.parametrize("share", ["1.5", "0.0", "1", "[0.1]"])
def test_a_part_is_a_split_or_a_fraction_between_0_and_1(tmp_path: Path, share: str) -> None:
    text = f"data: {{source: sklearn/digits, test: {share}}}\nnetwork: {{name: implicit_resnet}}\n"
    assert "data.test: must be the name of a split or a fraction between 0 and 1" in refusal(tmp_path, text)


def test_an_unknown_architecture_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL.replace("implicit_resnet", "resnet50"))
    assert "network.name: must be one of " in message
    assert "(got 'resnet50'" in message
    assert "implicit_resnet" in message


def test_an_unknown_argument_of_a_network_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL.replace("implicit_resnet", "implicit_resnet, arguments: {chanels: [8]}"))
    assert "mine.yaml: network.arguments.chanels: unknown argument: must be one of mean, std, channels" in message
    assert "(got 'chanels'; did you mean 'channels'?)" in message
    message = refusal(tmp_path, MINIMAL.replace("source: ", "shape: [1, 16], source: "))
    assert "mine.yaml: data.shape: must be [channels, height, width] (got [1, 16])" in message
    message = refusal(tmp_path, MINIMAL.replace("implicit_resnet", "implicit_resnet, arguments: {channels: many}"))
    assert "mine.yaml: network.arguments.channels: must be a list (got 'many')" in message


@pytest.mark.parametrize(
    ("data", "network", "more", "expected"),
    [
        ("source: ./nowhere", "implicit_resnet", "", r"data.source: must be a folder \(got './nowhere', which is none\)"),
        ("source: mazes, arguments: {size: 1}", "max_propagation", "", "data.arguments.size: must be"),
        ("source: a/b, shape: [1, 4, 4]", "implicit_resnet, arguments: {channels: [8, 8], pool: [4, 4]}", "", "pool: must leave"),
        (
            "source: a/b, shape: [1, 4, 8]",
            "implicit_resnet",
            "augment: {symmetries: true}",
            r"augment.symmetries: must be false for images that are not square \(got 4x8\)",
        ),
        (
            "source: sklearn/digits",
            "implicit_resnet",
            "curriculum: [{data: {source: ./nowhere}}]",
            r"data.source: must be a folder \(got './nowhere', which is none\)",
        ),
    ],
)
def test_a_recipe_is_checked_whole_before_data_is_read(tmp_path: Path, data: str, network: str, more: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{{data}, test: 0.2}}\nnetwork: {{name: {network}}}\n{more}\n")
    with pytest.raises(TrainingError, match=expected):
        check_before_data(load_recipe(str(path)))


class NeedsMean(ImplicitResNet):
    """An own network, whose mean and standard deviation have no default."""

    def __init__(self, input_shape: tuple[int, ...], classes: int, *, mean: list[float], std: list[float]) -> None:
        super().__init__(input_shape, classes, mean=mean, std=std)


def test_mean_and_std_may_be_left_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(architectures._registered, "needs_mean", NeedsMean)
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL.replace("implicit_resnet", "needs_mean"))
    check_before_data(load_recipe(str(path)))


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list", "data: {source: [unclosed"])
def test_a_file_that_is_not_a_recipe_is_rejected(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text)


def test_an_unknown_recipe_is_an_error_that_lists_the_shipped_ones_and_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"recipe: must be one of .*digits.* \(got 'mnits'; did you mean 'mnist'\?\)"):
        load_recipe("mnits")
    with pytest.raises(RecipeError, match=r"nope.yaml: No such file"):
        load_recipe("nope.yaml")


def test_numbers_with_an_exponent_are_numbers_although_yaml_parses_them_as_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL + "search: {tolerance: 1e-3}\n")
    assert load_recipe(str(path)).search.tolerance == 1e-3


def test_changes_are_validated_and_leave_the_recipe_as_it_was() -> None:
    recipe = load_recipe("digits")
    assert recipe.changed({"optimisation.epochs": 2}).optimisation.epochs == 2
    assert recipe.optimisation.epochs != 2
    with pytest.raises(RecipeError, match=r"optimisation.epochs"):
        recipe.changed({"optimisation.epochs": 0})
    with pytest.raises(
        RecipeError, match=r"data.sorce: unknown key: must be one of source, .* \(got 'sorce'; did you mean 'source'\?\)"
    ):
        recipe.changed({"data.sorce": "here"})


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_a_network_that_contracts_within_its_promised_size(name: str) -> None:
    most = {"mnist": 60_000, "cifar10": 840_000, "cifar10_small": 170_000}
    shapes = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28)}
    shapes |= {"digits_deq": (1, 8, 8), "digits_monotone": (1, 8, 8)}
    recipe = load_recipe(name)
    network = build(recipe.network.name, shapes.get(name, (3, 32, 32)), 10, recipe.network.arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) <= most.get(name, 200_000)
    bound = network.contraction_bound()
    assert bound is not None
    assert bound < 1
    assert recipe.license is not None


def test_small_cifar_is_not_augmented_and_large_is() -> None:
    assert load_recipe("cifar10_small").augment == AugmentRecipe()
    assert load_recipe("cifar10").augment == AugmentRecipe(flip=True, crop=4)
