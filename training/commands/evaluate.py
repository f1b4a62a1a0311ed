"""``python -m training evaluate``"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from rich.console import Console
from rich.table import Table
from typer import Argument, BadParameter, Option

from jfb.store import write_config
from training.data import load_evaluation_data
from training.device import choose_device
from training.evaluation.difficulty import describe_range
from training.evaluation.evaluate import CAPS, MAX_ACCURACY_LOSS, TOLERANCES, Evaluation
from training.evaluation.evaluate import evaluate as run
from training.evaluation.label_stops import MAX_DIFFERING
from training.reports.evaluation_report import write_evaluation_report
from training.reports.model_card import write_card
from training.store import find_version, load_version, recipe_of, with_serving

MAX_TOLERANCES = 4
"""Columns of a table by difficulty."""

Number = TypeVar("Number", int, float)


def _join(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)  # with spaces, so that the help can wrap it


def evaluate(
    model: Annotated[str, Argument(help="A name in the store (its highest version), name/version, or the folder of a version.")],
    recipe: Annotated[
        str | None, Option(help="Recipe with the data to evaluate on, for models that were not trained here: its name or a file.")
    ] = None,
    data: Annotated[
        Path | None, Option(exists=True, file_okay=False, help="Read the data from this folder instead of the recipe's source.")
    ] = None,
    tolerances: Annotated[str, Option(help="Tolerances, separated by commas.")] = _join(TOLERANCES),
    caps: Annotated[str, Option(help="Caps on iterations, separated by commas.")] = _join(CAPS),
    apply: Annotated[bool, Option("--apply", help="Make the recommended tolerance and solver the model's defaults.")] = False,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Model store.")] = Path("model_store"),
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Measure accuracy and iterations by tolerance and cap, recommend defaults, and calibrate label stops."""
    console = Console()
    chosen_tolerances, chosen_caps = _numbers("--tolerances", tolerances, float), _numbers("--caps", caps, int)
    on = choose_device(device)
    folder = find_version(model, store)
    checkpoint = load_version(folder, on)
    config = checkpoint.config
    chosen = recipe_of(config, folder, recipe).changed({} if data is None else {"data.source": str(data)})
    evaluation = run(
        checkpoint.network,
        config,
        load_evaluation_data(chosen, console),
        mixing=checkpoint.mixing,
        device=on,
        console=console,
        tolerances=chosen_tolerances,
        caps=chosen_caps,
    )
    name = folder.resolve().parent.name if folder.name.isdecimal() else folder.name
    write_evaluation_report(folder, name, evaluation)
    changes: dict[str, object] = {"label_calibration": evaluation.label_stops.calibration}
    if apply:
        changes |= {"tolerance": evaluation.recommended_tolerance, "solver": evaluation.solver_times.recommended}
    write_config(folder, with_serving(config, **changes))
    write_card(folder, name)
    console.print(_table(evaluation))
    answers = ", ".join(f"{outcome.iterations}: {outcome.accuracy:.2%}" for outcome in evaluation.anytime)
    console.print(f"accuracy after this many iterations: {answers}", soft_wrap=True)
    for measure in dict.fromkeys(outcome.measure for outcome in evaluation.difficulty):
        console.print(_difficulty_table(evaluation, measure))
    console.print(
        f"recommended tolerance [bold]{evaluation.recommended_tolerance:g}[/bold] (by {evaluation.validation_inputs:,} "
        f"validation inputs), "
        f"{'now the default' if apply else f'default {config.serving.tolerance:g}; --apply changes it'}: {folder}",
        soft_wrap=True,
    )
    console.print(_describe_label_stops(evaluation), soft_wrap=True)
    console.print(_describe_solvers(evaluation), soft_wrap=True)
    if evaluation.validation_inputs * MAX_ACCURACY_LOSS < 1:
        console.print(
            f"{evaluation.validation_inputs:,} inputs are too few to resolve {100 * MAX_ACCURACY_LOSS:g} percentage points: "
            "check the table",
            style="yellow",
            soft_wrap=True,
        )


def _describe_label_stops(evaluation: Evaluation) -> str:
    stops = evaluation.label_stops
    verdict = "" if stops.offered else f"; not offered, because more than {MAX_DIFFERING:.1%} differ"
    return (
        f"label stops ({stops.kind}): [bold]{stops.test.iterations:.1f}[/bold] iterations, {stops.test.differing} of "
        f"{stops.test.inputs:,} labels differ from the exact fixed point's{verdict}"
    )


def _describe_solvers(evaluation: Evaluation) -> str:
    times = evaluation.solver_times
    by_solver = ", ".join(
        f"{name} {microseconds:.0f} µs and {times.iterations[name]:.1f} iterations"
        for name, microseconds in times.microseconds.items()
    )
    at = " and ".join(f"{tolerance:g}" for tolerance in times.tolerances)
    return f"per input at tolerances {at}: {by_solver}; recommended solver [bold]{times.recommended}[/bold]"


def _numbers(option: str, text: str, number: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError as error:
        raise BadParameter(f"{option} must be numbers separated by commas (got {text!r})") from error


def _table(evaluation: Evaluation) -> Table:
    table = Table("tolerance", "accuracy", "mean iterations", "95th percentile", "unconverged")
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


def _difficulty_table(evaluation: Evaluation, measure: str) -> Table:
    """Show accuracy and mean iterations: a row for each range of difficulty, a column for some of the tolerances."""
    outcomes = [outcome for outcome in evaluation.difficulty if outcome.measure == measure]
    tolerances = list(dict.fromkeys(outcome.tolerance for outcome in outcomes))
    shown = tolerances[:: math.ceil(len(tolerances) / MAX_TOLERANCES)]  # more do not fit; difficulty.csv has them all
    table = Table(measure.replace("_", " "), "inputs", *(f"{tolerance:g}" for tolerance in shown))
    for low, high, inputs in dict.fromkeys((outcome.low, outcome.high, outcome.inputs) for outcome in outcomes):
        found = {outcome.tolerance: outcome for outcome in outcomes if outcome.low == low}
        cells = (f"{found[tolerance].accuracy:.1%}, {found[tolerance].iterations:.1f}" for tolerance in shown)
        table.add_row(describe_range(low, high), f"{inputs:,}", *cells)
    return table
