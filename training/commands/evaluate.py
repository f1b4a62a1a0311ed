"""``python -m training evaluate``"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from rich.console import Console
from rich.table import Table
from typer import Argument, BadParameter, Option

from jfb import ModelConfig
from jfb.store import CONFIG
from training.card import write_card
from training.commands.train import choose_device
from training.data import load_data
from training.evaluation import CAPS, TOLERANCES, WORTH_ITERATING_FOR, Evaluation
from training.evaluation import evaluate as run
from training.evaluation_report import write_evaluation
from training.label_stops import MOST_DIFFERING
from training.stored import find_version, load_version, recipe_of, with_serving

Number = TypeVar("Number", int, float)


def _text(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def evaluate(
    model: Annotated[str, Argument(help="A name in the store (its highest version), name/version, or a version's folder.")],
    recipe: Annotated[
        str | None, Option(help="Whose data to evaluate on, for models that were not trained here: a shipped recipe or a file.")
    ] = None,
    data: Annotated[
        Path | None, Option(exists=True, file_okay=False, help="A local folder instead of the recipe's source.")
    ] = None,
    tolerances: Annotated[str, Option(help="Separated by commas.")] = _text(TOLERANCES),
    caps: Annotated[str, Option(help="Largest numbers of iterations, separated by commas.")] = _text(CAPS),
    apply: Annotated[bool, Option("--apply", help="Make the recommended tolerance and solver the model's defaults.")] = False,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Where the model is.")] = Path("model_store"),
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Tell what tolerances and caps cost, recommend a default, calibrate label stops; write it all into the version's folder."""
    console = Console()
    on = choose_device(device)
    folder = find_version(model, store)
    checkpoint = load_version(folder, on)
    config = checkpoint.config
    chosen = recipe_of(config, folder, recipe).changed({} if data is None else {"data.source": str(data)})
    evaluation = run(
        checkpoint.network,
        config,
        load_data(chosen.data, console),
        device=on,
        console=console,
        tolerances=_numbers("--tolerances", tolerances, float),
        caps=_numbers("--caps", caps, int),
    )
    name = folder.resolve().parent.name if folder.name.isdecimal() else folder.name
    write_evaluation(folder, name, evaluation)
    changes: dict[str, object] = {"label_calibration": evaluation.label_stops.calibration}
    if apply:
        changes |= {"tolerance": evaluation.recommended_tolerance, "solver": evaluation.solver_times.recommended}
    exchange_config(folder, with_serving(config, **changes))
    write_card(folder, name)
    console.print(_table(evaluation))
    console.print(
        f"recommended tolerance [bold]{evaluation.recommended_tolerance:g}[/bold] (by {evaluation.validation_inputs:,} inputs of "
        f"the validation part), now "
        f"{'the default' if apply else f'{config.serving.tolerance:g}; --apply makes it the default'}: {folder}",
        soft_wrap=True,
    )
    console.print(_said_of_label_stops(evaluation), soft_wrap=True)
    console.print(_said_of_solvers(evaluation), soft_wrap=True)
    if evaluation.validation_inputs * WORTH_ITERATING_FOR < 1:
        console.print(
            f"so few inputs do not resolve {100 * WORTH_ITERATING_FOR:g} points of accuracy: look at the table, too",
            style="yellow",
            soft_wrap=True,
        )


def exchange_config(folder: Path, config: ModelConfig) -> None:
    """Give a version another config; who reads ``config.json`` meanwhile sees the old file or the new one."""
    incomplete = folder / f".{CONFIG}.incomplete"
    incomplete.write_text(config.model_dump_json(indent=2) + "\n")
    incomplete.replace(folder / CONFIG)


def _said_of_label_stops(evaluation: Evaluation) -> str:
    stops = evaluation.label_stops
    verdict = "" if stops.offered else f"; not offered, as more than {MOST_DIFFERING:.1%} differ"
    return (
        f"label stops ({stops.kind}): [bold]{stops.test.iterations:.1f}[/bold] iterations, {stops.test.differing} of "
        f"{stops.test.inputs:,} labels differ from the exact fixed point's{verdict}"
    )


def _said_of_solvers(evaluation: Evaluation) -> str:
    times = evaluation.solver_times
    told = ", ".join(
        f"{name} {microseconds:.0f} µs and {times.iterations[name]:.1f} iterations"
        for name, microseconds in times.microseconds.items()
    )
    at = " and ".join(f"{tolerance:g}" for tolerance in times.tolerances)
    return f"an input at {at}: {told}; recommended solver [bold]{times.recommended}[/bold]"


def _numbers(option: str, text: str, number: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError as error:
        raise BadParameter(f"{option}: expected numbers separated by commas, got {text!r}") from error


def _table(evaluation: Evaluation) -> Table:
    table = Table("tolerance", "accuracy", "mean iterations", "95 % take at most", "unconverged")
    for outcome in evaluation.outcomes:
        if outcome.label is None and outcome.max_iterations == evaluation.serving.max_iterations:
            table.add_row(
                f"{outcome.tolerance:g}",
                f"{outcome.accuracy:.2%}",
                f"{outcome.iterations:.1f}",
                str(outcome.p95_iterations),
                f"{outcome.unconverged:.2%}",
            )
    return table
