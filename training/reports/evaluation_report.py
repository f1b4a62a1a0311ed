"""The report of an evaluation: evaluation.json, evaluation.csv and evaluation.png."""

from dataclasses import asdict
from pathlib import Path

from jfb.store import EVALUATION_PLOT, EVALUATION_TABLE, write_evaluation, write_table
from training.evaluation.evaluate import Evaluation, Outcome


def write_evaluation_report(folder: Path, name: str, evaluation: Evaluation) -> None:
    """Write ``evaluation.json``, ``evaluation.csv`` and ``evaluation.png`` into a version's folder."""
    content = {
        "serving": evaluation.serving.model_dump(mode="json"),
        "recommended_tolerance": evaluation.recommended_tolerance,
        "validation_inputs": evaluation.validation_inputs,
        "label_stops": asdict(evaluation.label_stops) | {"offered": evaluation.label_stops.offered},
        "solver_times": asdict(evaluation.solver_times),
        "outcomes": [asdict(outcome) for outcome in evaluation.outcomes if outcome.label is None],
    }
    write_evaluation(folder, content)
    write_table(folder / EVALUATION_TABLE, Outcome, evaluation.outcomes)
    _plot(folder / EVALUATION_PLOT, name, evaluation)


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
    figure.savefig(path, dpi=120)
