"""Recipe: everything that determines a training run, in one small YAML file that users copy and change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError, model_validator

from jfb.architectures import NOT_SERVED, check_arguments, find
from jfb.config import ArchitectureSpec, ResidualNorm, Serving, Strict, must_be_one_of
from jfb.gradients import GRADIENTS, Gradient, Search
from jfb.solvers import SOLVERS, check_solver
from training.errors import RecipeError

SHIPPED = Path(__file__).parent / "recipes"

Fraction = Annotated[float, Field(gt=0, lt=1)]


def _part(value: object) -> object:
    if not (isinstance(value, str) or (isinstance(value, float) and 0 < value < 1)):
        raise ValueError(f"must be the name of a split or a fraction between 0 and 1 (got {value!r})")
    return value


def _shape(value: object) -> object:
    if value is not None and not (isinstance(value, list | tuple) and len(value) == 3):
        raise ValueError(f"must be [channels, height, width] (got {value!r})")
    return value


Part = Annotated[str | float, BeforeValidator(_part)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class DataRecipe(Strict):
    """Where the data is, and which of its splits and columns to use."""

    source: str
    """``sklearn/digits``, ``mazes``, the id of a data set on the Hugging Face hub, or a local folder: of parquet files, or of
    images with one subfolder per class."""
    arguments: dict[str, JsonValue] = Field(default={}, exclude_if=lambda value: not value)
    """Arguments of a source that is generated: of ``mazes``, those of ``training.data.mazes.MazesRecipe``."""
    configuration: str | None = None
    """Configuration of the data set on the hub, if it has several."""
    inputs: str = "image"
    """The column with the inputs: images, or vectors."""
    labels: str = "label"
    """The column with the labels."""
    shape: Annotated[tuple[int, int, int] | None, BeforeValidator(_shape)] = None
    """``[1 or 3, height, width]``: images are converted and resized to it. Default: the shape of the first image."""
    train: str = "train"
    """Training split."""
    validation: Part = 0.1
    """Split for model selection, or the fraction of the training split to hold out for it."""
    test: Part = "test"
    """Split for the final report, or the fraction of the training split to hold out for it."""


class Stage(Strict):
    """A stage of a curriculum: epochs on other training data."""

    epochs: int = Field(default=1, ge=1)
    data: dict[str, JsonValue]
    """Changes to the recipe's data section; ``arguments`` are merged with the section's."""


class GradientRecipe(Strict):
    """How the fixed point is differentiated: a name in ``jfb.gradients`` and its arguments."""

    name: str = "jfb"
    options: dict[str, JsonValue] = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name not in GRADIENTS:
            raise ValueError(f"name: {must_be_one_of(GRADIENTS, self.name)}")
        try:
            self.build()
        except (TypeError, ValueError) as error:
            raise ValueError(f"options: {self.name}: {error}") from error
        return self

    def build(self) -> Gradient:
        """Return the gradient that the section names."""
        options: dict[str, Any] = self.options
        return GRADIENTS[self.name](**options)


class SearchRecipe(Strict):
    """How training solves for the fixed point; by Corollary 0.1 of the paper it need not be exact."""

    tolerance: Positive = 1e-2
    max_iterations: int = Field(default=50, ge=1)
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the convolutions and products in the search; the step that is differentiated is always float32. ``auto``
    times both when a run starts and records the faster one in its recipe (see ``training.loop.precision``)."""
    compile: bool | Literal["auto"] = Field(default=False, exclude_if=lambda value: value is False)
    """Whether to compile ``step``, for the search and for the step that JFB differentiates. ``auto`` times both on a GPU when a
    run starts, which takes a minute, and records the faster one in its recipe (see ``training.loop.compilation``)."""
    solver: str = "picard"
    """A name in ``jfb.solvers``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver: {must_be_one_of(SOLVERS, self.solver)}")
        return self

    def build(self) -> Search:
        """Return the search that the section describes; ``auto`` that was not resolved is float32."""
        solver = SOLVERS[self.solver]()
        return Search(self.tolerance, self.max_iterations, self.residual_norm, solver, bfloat16=self.precision == "bfloat16")


class OptimisationRecipe(Strict):
    """AdamW with linear warm-up and cosine decay of the learning rate to zero over the whole run."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=100, ge=1)
    learning_rate: Positive = 5e-3
    """Peak learning rate."""
    warm_up: Fraction = 0.2
    """Fraction of the run in which the learning rate rises."""
    weight_decay: NonNegative = 0.0
    """Applied to matrices and kernels, not to biases and normalisation parameters."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    averaging: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of the exponential moving average (EMA) of the weights, which is what is evaluated and saved; 0 is no
    averaging. The decay is warmed up (see ``training.loop.optimiser``)."""
    max_gradient_norm: NonNegative = 0.0
    """Gradients with a larger L2 norm are scaled down to it; 0 is no limit."""
    jacobian_penalty: NonNegative = 0.0
    """Weight in the loss of ``‖∂T/∂u‖²`` at the fixed points (see ``training.loop.jacobian_penalty``); 0 is none."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights, the order of the data, augmentation and dropout; the splits do not depend on it."""


class AugmentRecipe(Strict):
    """Random augmentation of training images, drawn uniformly for each image and epoch; the default is none."""

    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest angle in either direction, in degrees."""
    shift: float = Field(default=0.0, ge=0, lt=1)
    """Largest shift in either direction, as a fraction of height and width."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of size in either direction, as a fraction."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Largest shear angle in either direction, in degrees."""
    flip: bool = False
    """Mirror each image horizontally with probability 1/2."""
    symmetries: bool = False
    """Rotate each image by a multiple of 90° and mirror it or not, all eight with the same probability; images must be square."""
    crop: int = Field(default=0, ge=0)
    """Pixels of padding on each side before a random crop of the image's own size."""


class ServingRecipe(Serving):
    """How the trained model is served."""

    accelerate: bool = True
    """Whether to fit learned mixing after training, which becomes the model's solver if it is clearly faster than ``solver``."""

    export: bool = False
    """Whether to write the model as ONNX graphs, too: a server computes with them on a CPU where they are faster."""

    @property
    def before(self) -> Serving:
        """The serving section of the model's config, before it is accelerated."""
        return Serving.model_validate(self.model_dump(exclude={"accelerate", "export"}))


class Recipe(Strict):
    """A whole recipe file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    """Name of the model in the store. Default: the name of the file."""
    data: DataRecipe
    curriculum: tuple[Stage, ...] = ()
    """Stages before the ``optimisation.epochs`` on the recipe's own data, in order. All are validated on that data."""
    generalisation: tuple[dict[str, JsonValue], ...] = ()
    """Changes to the data section, as in a stage: evaluation reports the test parts of these data too, by the width of their
    images."""
    network: ArchitectureSpec
    """Architecture and its arguments. Default of ``mean`` and ``std``: measured on the training part."""
    gradient: GradientRecipe = GradientRecipe()
    search: SearchRecipe = SearchRecipe()
    optimisation: OptimisationRecipe = OptimisationRecipe()
    augment: AugmentRecipe = AugmentRecipe()
    serving: ServingRecipe = ServingRecipe()
    license: str | None = None
    """Licence of the trained weights, by its identifier on the Hugging Face hub: ``mit``, ``apache-2.0``, ``other``, ..."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network.name in NOT_SERVED:
            raise ValueError(f"network.name: {self.network.name!r} is a rival: train it with python -m training compare --rivals")
        try:
            kind = find(self.network.name)
        except ValueError as error:
            raise ValueError(f"network.name: {error}") from error
        try:
            check_arguments(kind, self.network.arguments)
        except ValueError as error:
            raise ValueError(f"network.arguments.{error}") from error
        for section, solver in (("search", self.search.solver), ("serving", self.serving.solver)):
            if SOLVERS[solver].learned:
                raise ValueError(f"{section}.solver: {solver} is fitted after training: set serving.accelerate instead")
            try:
                check_solver(solver, self.network.name, kind)
            except ValueError as error:
                raise ValueError(f"{section}.{error}") from error
        if self.search.compile is True and not self.can_compile:
            raise ValueError(
                "search.compile: must be false or auto with a Jacobian penalty, and with other gradients than jfb and explicit"
            )
        changes = {f"curriculum.{number}.data": stage.data for number, stage in enumerate(self.curriculum)}
        changes |= {f"generalisation.{number}": change for number, change in enumerate(self.generalisation)}
        for key, change in changes.items():
            try:
                self.changed_data(change)
            except ValidationError as error:
                raise ValueError(f"{key}: {_describe(error, DataRecipe)}") from error
        return self

    @property
    def can_compile(self) -> bool:
        """Whether ``step`` may be compiled: a compiled map is differentiated once only."""
        return self.gradient.name in ("jfb", "explicit") and not self.optimisation.jacobian_penalty

    def changed_data(self, changes: dict[str, JsonValue]) -> DataRecipe:
        """Return the data section with the changes of a stage of the curriculum, or of ``generalisation``."""
        content = {**self.data.model_dump(mode="json"), **changes}
        if isinstance(arguments := content.get("arguments"), dict):
            content["arguments"] = {**self.data.arguments, **arguments}
        return DataRecipe.model_validate(content)

    def changed(self, changes: Mapping[str, object]) -> "Recipe":
        """Return a copy with new values for some keys, such as ``{"optimisation.epochs": 3}``.

        Raises:
            RecipeError: for an unknown key or an invalid value.
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
    """Return the names of the recipes that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Load a shipped recipe by name, or any YAML file by path.

    Raises:
        RecipeError: for an unknown name, a file that is missing or not YAML, an unknown key, or an invalid value.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror or error}") from error
    elif name_or_path in shipped_recipes():
        content = (SHIPPED / f"{name_or_path}.yaml").read_bytes()
    else:
        raise RecipeError(
            f"recipe: {must_be_one_of(shipped_recipes(), name_or_path)}; to use your own, give the path of a .yaml file"
        )
    try:
        sections = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name_or_path}: not valid YAML: {error}") from error
    if not isinstance(sections, dict):
        raise RecipeError(f"{name_or_path}: must be the sections of a recipe (got {sections!r})")
    return _validate({"name": path.stem, **sections}, name_or_path)


def _validate(content: dict[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_describe(error, Recipe)}") from error


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe what is wrong with the sections of a model."""
    problems = []
    for problem in error.errors():
        *sections, key = map(str, problem["loc"]) if problem["loc"] else ("recipe",)
        where = ".".join((*sections, key))
        match problem["type"]:
            case "extra_forbidden":
                problems.append(f"{where}: unknown key: {must_be_one_of(_keys(model, sections), key)}")
            case "missing":
                problems.append(f"{where}: is required")
            case "value_error":
                message = str(problem["ctx"]["error"])
                prefix = f"{where}{': ' if message.startswith('must') else '.'}"  # a check of a whole section names its key
                problems.append(f"{prefix if problem['loc'] else ''}{message}")
            case _:
                rule = problem["msg"].replace("Input should", "must")
                problems.append(f"{where}: {rule} (got {problem['input']!r})")
    return "; ".join(problems)


def _keys(model: type[BaseModel], sections: list[str]) -> list[str]:
    """Return the keys of a section of a model."""
    for name in sections:
        if name.isdecimal():  # a place in a list of sections
            continue
        inner = model.model_fields[name].annotation
        inner = next((part for part in get_args(inner) if part is not Ellipsis), inner)
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)
