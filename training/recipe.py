"""Recipe: everything that decides what is trained, and how. A small YAML file that a user copies to make their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError, model_validator

from jfb.architectures import NOT_SERVED, find
from jfb.config import ArchitectureSpec, ResidualNorm, Serving, Strict
from jfb.gradients import GRADIENTS, Gradient, Search
from jfb.solvers import SOLVERS, check_solver
from training.errors import RecipeError

SHIPPED = Path(__file__).parent / "recipes"

Share = Annotated[float, Field(gt=0, lt=1)]


def _part(value: object) -> object:
    if not (isinstance(value, str) or (isinstance(value, float) and 0 < value < 1)):
        raise ValueError(f"expected the name of a split, or a share between 0 and 1, got {value!r}")
    return value


Part = Annotated[str | float, BeforeValidator(_part)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class DataRecipe(Strict):
    """Where the data is and what is in it."""

    source: str
    """``sklearn/digits``, the id of a data set on the Hugging Face hub, or a local folder: of parquet files, or of images with
    one subfolder a class."""
    configuration: str | None = None
    """Of the data set on the hub, where it has several."""
    inputs: str = "image"
    """The column with the inputs: images, or vectors."""
    labels: str = "label"
    """The column with the labels."""
    shape: tuple[int, int, int] | None = None
    """``[1 or 3, height, width]`` that images are converted and resized to; that of the first image if left out."""
    train: str = "train"
    """The split to train with."""
    validation: Part = 0.1
    """The split to watch and to choose by, or the share of the training split that is kept apart for it."""
    test: Part = "test"
    """The split for the final report, or the share of the training split that is kept apart for it."""


class GradientRecipe(Strict):
    """How the fixed point is differentiated: a name of ``jfb.gradients`` and its arguments."""

    name: str = "jfb"
    options: dict[str, JsonValue] = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name not in GRADIENTS:
            raise ValueError(f"name: unknown gradient {self.name!r}, expected one of {', '.join(GRADIENTS)}")
        try:
            self.build()
        except (TypeError, ValueError) as error:
            raise ValueError(f"options: {self.name}: {error}") from error
        return self

    def build(self) -> Gradient:
        options: dict[str, Any] = self.options
        return GRADIENTS[self.name](**options)


class SearchRecipe(Strict):
    """How the fixed point is searched for while training; by Corollary 0.1 of the paper it need not be exact."""

    tolerance: Positive = 1e-2
    max_iterations: int = Field(default=50, ge=1)
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the convolutions and products in the search; the step that is differentiated is always float32. ``auto`` tries both when
    a run begins, takes the faster one, and writes down which (see ``training.precision``)."""
    solver: str = "picard"
    """A name of ``jfb.solvers``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver: unknown solver {self.solver!r}, expected one of {', '.join(SOLVERS)}")
        return self

    def build(self) -> Search:
        """What is still ``auto`` is float32."""
        solver = SOLVERS[self.solver]()
        return Search(self.tolerance, self.max_iterations, self.residual_norm, solver, bfloat16=self.precision == "bfloat16")


class OptimisationRecipe(Strict):
    """AdamW, its learning rate rising linearly and then falling as a cosine to zero, once over the whole run."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=100, ge=1)
    learning_rate: Positive = 5e-3
    """At its peak."""
    warm_up: Share = 0.2
    """Share of the run in which the learning rate rises."""
    weight_decay: NonNegative = 0.0
    """Of matrices and kernels; biases and normalisations have none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    averaging: float = Field(default=0.0, ge=0, lt=1)
    """Decay a step of the moving average of the weights, which is what is evaluated and saved; 0 is no averaging.

    ``training.averaging`` begins with less."""
    jacobian_penalty: NonNegative = 0.0
    """Weight in the loss of the size of ``∂T/∂u`` at the fixed points (``training.jacobian_penalty``); 0 is none."""
    seed: int = Field(default=0, ge=0)
    """Of the weights, the order of the data and the augmentation; not of the splits, which never change."""


class AugmentRecipe(Strict):
    """Random changes of training images, each drawn uniformly and anew for every image; what is left out is not done."""

    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest angle either way, in degrees."""
    shift: float = Field(default=0.0, ge=0, lt=1)
    """Largest shift either way, as a share of height and width."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Largest change of size either way, as a share."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Largest angle of shear either way, in degrees."""
    flip: bool = False
    """Mirror every other image, left and right."""
    crop: int = Field(default=0, ge=0)
    """Pixels that are added on each side, before a window of the image's own size is cut out: shifts by whole pixels."""


class Recipe(Strict):
    """The whole of a recipe file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the model in the store; that of the file if left out."""
    data: DataRecipe
    network: ArchitectureSpec
    """Architecture and arguments. ``mean`` and ``std`` are measured on the training part where they are left out."""
    gradient: GradientRecipe = GradientRecipe()
    search: SearchRecipe = SearchRecipe()
    optimisation: OptimisationRecipe = OptimisationRecipe()
    augment: AugmentRecipe = AugmentRecipe()
    serving: Serving = Serving()
    license: str | None = None
    """Of the trained weights, as the Hugging Face hub names licences: ``mit``, ``apache-2.0``, ``other``, ..."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network.name in NOT_SERVED:
            raise ValueError(f"network.name: {self.network.name!r} is trained by python -m training compare --rivals only")
        try:
            kind = find(self.network.name)
        except ValueError as error:
            raise ValueError(f"network.name: {error}") from error
        for section, solver in (("search", self.search.solver), ("serving", self.serving.solver)):
            try:
                check_solver(solver, self.network.name, kind)
            except ValueError as error:
                raise ValueError(f"{section}.{error}") from error
        return self

    def changed(self, changes: Mapping[str, object]) -> "Recipe":
        """Return a copy with other values for some keys, such as ``{"optimisation.epochs": 3}``.

        Raises:
            RecipeError: for a key that recipes do not have, or a value that it does not take.
        """
        content = self.model_dump(mode="json")
        for key, value in changes.items():
            *sections, last = key.split(".")
            section = content
            for name in sections:
                section = section.setdefault(name, {})
            section[last] = value
        return _validate(content, self.name)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe: a shipped one by name, or any YAML file by path.

    Raises:
        RecipeError: for an unknown name, a file that is missing or not YAML, an unknown key, and a wrong value.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text()
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror or error}") from error
    elif name_or_path in shipped_recipes():
        text = (SHIPPED / f"{name_or_path}.yaml").read_text()
    else:
        raise RecipeError(
            f"unknown recipe {name_or_path!r}: expected one of {', '.join(shipped_recipes())}, or the path of a .yaml file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name_or_path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{name_or_path}: expected the sections of a recipe, got {content!r}")
    return _validate({"name": path.stem, **content}, name_or_path)


def _validate(content: dict[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            *sections, key = map(str, problem["loc"]) if problem["loc"] else ("recipe",)
            where = ".".join((*sections, key))
            match problem["type"]:
                case "extra_forbidden":
                    problems.append(f"{where}: unknown key, expected one of {', '.join(_keys(sections))}")
                case "missing":
                    problems.append(f"{where}: missing")
                case "value_error":
                    problems.append(f"{where}: {problem['ctx']['error']}" if problem["loc"] else str(problem["ctx"]["error"]))
                case _:
                    problems.append(f"{where}: {problem['msg']}, got {problem['input']!r}")
        raise RecipeError(f"{origin}: {'; '.join(problems)}") from error


def _keys(sections: list[str]) -> list[str]:
    """The keys of a section of the recipe."""
    model: type[BaseModel] = Recipe
    for name in sections:
        inner = model.model_fields[name].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)
