"""The report of an evaluation: evaluation.json, evaluation.csv and evaluation.png, and difficulty.csv and difficulty.png."""

from dataclasses import asdict, dataclass
from pathlib import Path

from jfb.store import (
    DIFFICULTY_PLOT,
    DIFFICULTY_TABLE,
    EVALUATION_PLOT,
    EVALUATION_TABLE,
    replaced_file,
    write_evaluation,
    write_table,
)
from training.evaluation.difficulty import DifficultyOutcome
from training.evaluation.evaluate import Evaluation, Outcome


@dataclass(frozen=True)
class _Line(Outcome):
    """A line of ``evaluation.csv``: an ``Outcome``, or a ``SolverOutcome``, whose other columns are empty."""

    solver: str
    microseconds: float


def write_evaluation_report(folder: Path, name: str, evaluation: Evaluation) -> None:
    """Write ``evaluation.json``, ``evaluation.csv`` and ``evaluation.png`` into a version's folder.

    The table has the outcomes of the default solver, and then the iterations and the time of every solver, with and without a
    learned start. For data that says how hard an input is, also ``difficulty.csv`` and ``difficulty.png``.
    """
    content = {
        "serving": evaluation.serving.model_dump(mode="json"),
        "recommended_tolerance": evaluation.recommended_tolerance,
        "validation_inputs": evaluation.validation_inputs,
        "label_stops": asdict(evaluation.label_stops) | {"offered": evaluation.label_stops.offered},
        "solver_times": asdict(evaluation.solver_times),
        "anytime": [asdict(outcome) for outcome in evaluation.anytime],
        "difficulty": [asdict(outcome) for outcome in evaluation.difficulty],
        "outcomes": [asdict(outcome) for outcome in evaluation.outcomes if outcome.label is None],
    }
    write_evaluation(folder, content)
    write_table(folder / EVALUATION_TABLE, _Line, [*evaluation.outcomes, *evaluation.solver_times.outcomes])
    _plot(folder / EVALUATION_PLOT, name, evaluation)
    if evaluation.difficulty:
        write_table(folder / DIFFICULTY_TABLE, DifficultyOutcome, evaluation.difficulty)
        _plot_difficulty(folder / DIFFICULTY_PLOT, name, evaluation)


def _plot(path: Path, name: str, evaluation: Evaluation) -> None:
    """Plot accuracy against iterations when each input stops at the tolerance, and when all inputs stop at a cap."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    serving = evaluation.serving
    overall = [outcome for outcome in evaluation.outcomes if outcome.label is None]
    tightest = min(outcome.tolerance for outcome in overall)
    stopping = [outcome for outcome in overall if outcome.max_iterations == serving.max_iterations]
    capped = [outcome for outcome in overall if outcome.tolerance == tightest]

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    curves = (
        ([o.iterations for o in stopping], stopping, "o-", "each input stops at the tolerance"),
        ([o.iterations for o in capped], capped, "s--", f"stopped at a cap, tolerance {tightest:g}"),
    )
    for iterations, outcomes, style, label in curves:
        axes.plot(iterations, [100 * o.accuracy for o in outcomes], style, label=label, alpha=0.8)
    points: dict[tuple[float, float], list[str]] = {}
    for outcome in stopping:
        points.setdefault((outcome.iterations, 100 * outcome.accuracy), []).append(f"{outcome.tolerance:g}")
    for point, tolerances in points.items():
        axes.annotate(", ".join(tolerances), point, xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    for outcome in stopping:
        if outcome.tolerance == evaluation.recommended_tolerance:
            axes.plot(
                outcome.iterations, 100 * outcome.accuracy, "*", markersize=16, color="tab:red", label="recommended tolerance"
            )
    axes.set_title(f"{name}: accuracy on the test part by tolerance ({serving.residual_norm})")
    axes.set_xlabel("mean iterations per input")
    axes.set_ylabel("accuracy (%)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with replaced_file(path) as incomplete:
        figure.savefig(incomplete, dpi=120, format="png")


def _plot_difficulty(path: Path, name: str, evaluation: Evaluation) -> None:
    """Plot accuracy and iterations against each measure of difficulty, one line per tolerance."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    outcomes = evaluation.difficulty
    measures = list(dict.fromkeys(outcome.measure for outcome in outcomes))
    tolerances = sorted({outcome.tolerance for outcome in outcomes}, reverse=True)
    figure = Figure(figsize=(9, 3.5 * len(measures)), layout="constrained")
    grid = figure.subplots(len(measures), 2, squeeze=False, sharex="row")
    for (accuracy, iterations), measure in zip(grid, measures, strict=True):
        for place, tolerance in enumerate(tolerances):
            chosen = [outcome for outcome in outcomes if (outcome.measure, outcome.tolerance) == (measure, tolerance)]
            middles = [(outcome.low + outcome.high) / 2 for outcome in chosen]
            colour = colormaps["viridis"](place / max(len(tolerances) - 1, 1))
            accuracy.plot(middles, [100 * outcome.accuracy for outcome in chosen], "o-", color=colour, label=f"{tolerance:g}")
            iterations.plot(middles, [outcome.iterations for outcome in chosen], "o-", color=colour)
        for axes, label in ((accuracy, "accuracy (%)"), (iterations, "mean iterations per input")):
            axes.set_xlabel(measure.replace("_", " "))
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), title="tolerance", loc="outside right center")
    figure.suptitle(f"{name}: easy and hard inputs of the test part by tolerance ({evaluation.serving.residual_norm})")
    with replaced_file(path) as incomplete:
        figure.savefig(incomplete, dpi=120, format="png")
