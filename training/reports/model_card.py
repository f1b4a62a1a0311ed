"""The model card: README.md of a version, from the other files in its folder."""

from pathlib import Path
from typing import Any

import yaml

from jfb.config import ModelConfig
from jfb.store import CARD, CURVES, DIFFICULTY_PLOT, EVALUATION_PLOT, read_config, read_evaluation, read_metrics, replaced_file
from training.evaluation.difficulty import describe_range
from training.reports.tables import markdown_table


def write_card(folder: Path, name: str) -> None:
    """Write the card from ``config.json`` and, if they exist, ``metrics.json``, ``evaluation.json`` and the pictures.

    The card starts with the metadata that the Hugging Face hub reads.
    """
    config, evaluation = read_config(folder), read_evaluation(folder)
    recipe = config.provenance.get("recipe", {})
    license_ = config.provenance.get("license", recipe.get("license"))
    metadata = {"library_name": "jfb", "tags": ["implicit-network", "jacobian-free-backpropagation"]}
    metadata |= {"license": license_} if license_ else {}
    sections = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {name}",
        _origin(config, recipe),
        _inputs(config),
        _licence(license_),
        _pictures(folder, {CURVES: "loss, accuracy and iterations over the epochs"}),
        _metrics(config, recipe, read_metrics(folder)),
        _tolerances(evaluation),
        _anytime(config, evaluation),
        _difficulty(evaluation),
        _pictures(folder, {DIFFICULTY_PLOT: "accuracy and iterations of easy and hard inputs"}),
        _solvers(evaluation),
        _label_stops(evaluation),
        _pictures(folder, {EVALUATION_PLOT: "accuracy against mean iterations"}),
        _recipe(recipe),
    ]
    with replaced_file(folder / CARD) as incomplete:
        incomplete.write_text("\n\n".join(section for section in sections if section) + "\n")


def _origin(config: ModelConfig, recipe: dict[str, Any]) -> str:
    text = (
        f"An implicit classifier (`{config.architecture.name}`) of {len(config.classes)} classes: its answer is read from the "
        "fixed point of one small block, and each request chooses the tolerance."
    )
    if recipe:
        text += f" Trained on `{recipe['data']['source']}` with the gradient `{recipe['gradient']['name']}`."
    if about := config.provenance.get("about"):
        text += f"\n\n{about}"
    return text


def _inputs(config: ModelConfig) -> str:
    spec = config.input
    values = "" if spec.low is None or spec.high is None else f", from {spec.low:g} to {spec.high:g}"
    shown = ", ".join(config.classes[:20]) + (", …" if len(config.classes) > 20 else "")
    return (
        f"Inputs are raw, `{spec.dtype}` of shape `{list(spec.shape)}`{values}; normalisation is part of the network. "
        f"Labels: {shown}."
    )


def _licence(name: str | None) -> str:
    return f"Licence: {name}." if name else "Licence: none is stated; ask the author of the model."


def _pictures(folder: Path, pictures: dict[str, str]) -> str:
    return "\n\n".join(f"![{text}]({name})" for name, text in pictures.items() if (folder / name).exists())


def _metrics(config: ModelConfig, recipe: dict[str, Any], metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return ""
    serving = recipe.get("serving", config.serving.model_dump(mode="json"))  # the config may have changed since
    test = config.provenance.get("inputs", {}).get("test")
    bound = metrics["contraction_bound"]
    norm = metrics.get("contraction_norm", "absolute")
    return markdown_table(
        ("on the test part" + (f" ({test:,} inputs)" if test else ""), ""),
        [
            ("accuracy", f"{metrics['accuracy']:.2%}"),
            (
                f"mean iterations of {serving['solver']} at tolerance {serving['tolerance']:g} "
                f"({serving['residual_norm']}), at most {serving['max_iterations']}",
                f"{metrics['iterations']:.1f}",
            ),
            ("converged", f"{metrics['converged']:.2%}"),
            ("parameters", f"{metrics['parameters']:,}"),
            ("training time", f"{metrics['seconds']:.0f} s"),
            ("contraction factor: guaranteed bound", _bound(bound, norm)),
            (f"contraction factor: largest measured at fixed points{_L2[norm]}", f"{metrics['contraction_factor']:.3f}"),
        ],
    )


_L2 = {"absolute": "", "max": ", in L2"}
"""What to add to a measurement in L2 where the bound is in another norm."""


def _bound(bound: float | None, norm: str) -> str:
    if bound is None:
        return "none"
    return f"{bound:.3f}" if norm == "absolute" else f"{bound:.3f}, in the norm `{norm}`"


def _tolerances(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return ""
    serving = evaluation["serving"]
    rows = [outcome for outcome in evaluation["outcomes"] if outcome["max_iterations"] == serving["max_iterations"]]
    table = markdown_table(
        ("tolerance", "accuracy", "mean iterations", "95th percentile", "unconverged"),
        [
            (
                f"{row['tolerance']:g}",
                f"{row['accuracy']:.2%}",
                f"{row['iterations']:.1f}",
                f"{row['p95_iterations']}",
                f"{row['unconverged']:.2%}",
            )
            for row in rows
        ],
    )
    return (
        f"## What a tolerance costs\n\nOn the test part, at most {serving['max_iterations']} iterations; tolerances are "
        f"`{serving['residual_norm']}`. Recommended, by the {evaluation['validation_inputs']:,} inputs of the validation part: "
        f"**{evaluation['recommended_tolerance']:g}**, the loosest that loses at most 0.05 percentage points of accuracy against "
        f"the tightest.\n\n{table}"
    )


def _anytime(config: ModelConfig, evaluation: dict[str, Any] | None) -> str:
    if evaluation is None or "anytime" not in evaluation:  # an evaluation by an earlier version of this project
        return ""
    outcomes = evaluation["anytime"]
    start = "of the learned start" if config.learned_start is not None else "of the state that the iteration starts at"
    table = markdown_table(
        ("iterations", *(str(outcome["iterations"]) for outcome in outcomes)),
        [("accuracy", *(f"{outcome['accuracy']:.2%}" for outcome in outcomes))],
    )
    return (
        "## Answers after a few iterations\n\nOn the test part, with the default solver, if every input is answered then; 0 is "
        f"the readout {start}.\n\n{table}"
    )


def _difficulty(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None or not evaluation.get("difficulty"):
        return ""
    tables = [_difficulty_table(evaluation["difficulty"], measure) for measure in _measures(evaluation["difficulty"])]
    return "\n\n".join(["## Easy and hard inputs", "Accuracy and mean iterations on the test part, by tolerance.", *tables])


def _measures(outcomes: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(outcome["measure"] for outcome in outcomes))


def _difficulty_table(outcomes: list[dict[str, Any]], measure: str) -> str:
    """Return a Markdown table with a row for each range of a measure of difficulty and a column for each tolerance."""
    of_measure = [outcome for outcome in outcomes if outcome["measure"] == measure]
    tolerances = list(dict.fromkeys(outcome["tolerance"] for outcome in of_measure))
    cells = {
        (outcome["low"], outcome["high"], outcome["inputs"], outcome["tolerance"]): (
            f"{outcome['accuracy']:.1%}, {outcome['iterations']:.1f}"
        )
        for outcome in of_measure
    }
    ranges = list(dict.fromkeys(key[:3] for key in cells))
    return markdown_table(
        (measure.replace("_", " "), "inputs", *(f"{tolerance:g}" for tolerance in tolerances)),
        [
            (describe_range(low, high), f"{inputs:,}", *(cells[low, high, inputs, tolerance] for tolerance in tolerances))
            for low, high, inputs in ranges
        ],
    )


def _solvers(evaluation: dict[str, Any] | None) -> str:
    times = (evaluation or {}).get("solver_times", {})
    if evaluation is None or "iterations_at" not in times:  # an evaluation by an earlier version of this project
        return ""
    default = evaluation["serving"]["solver"]
    rows = [
        (
            f"{tolerance:g}",
            f"{name} (default)" if name == default else name,
            f"{times['iterations_at'][name][place]:.1f}",
            str(times["max_iterations_at"][name][place]),
            f"{times['microseconds_at'][name][place]:.0f}",
        )
        for place, tolerance in enumerate(times["tolerances"])
        for name in times["iterations_at"]
    ]
    table = markdown_table(("tolerance", "solver", "mean iterations", "slowest input", "microseconds per input"), rows)
    return f"## Solvers\n\nOn the validation part, in batches of 64, on the machine that evaluated the model.\n\n{table}"


def _label_stops(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None or "label_stops" not in evaluation:  # an evaluation by an earlier version of this project
        return ""
    stops = evaluation["label_stops"]
    heading = "## Label stops\n\n"
    if not stops["offered"]:
        parts = f"{_differing(stops['validation'])} in the validation part, {_differing(stops['test'])} in the test part"
        return f"{heading}Not offered: {parts}."
    if stops["kind"] == "guarantee":
        what = "A guarantee (up to rounding), because the network contracts by construction."
    else:
        what = (
            f"An estimate with the safety factor {stops['safety']:g}, calibrated on the validation part, where "
            f"{_differing(stops['validation'])}."
        )
    return (
        f'{heading}With `"stop": "label"` a row stops when its label can no longer change. {what} On the test part '
        f"{_differing(stops['test'])}, after {stops['test']['iterations']:.1f} iterations on average "
        f"(rows whose label is not settled stop at the tolerance {stops['tolerance']:g})."
    )


def _differing(part: dict[str, Any]) -> str:
    return f"{part['differing']:,} of {part['inputs']:,} labels differ from the exact fixed point's"


def _recipe(recipe: dict[str, Any]) -> str:
    if not recipe:
        return ""
    return f"## The recipe\n\n```yaml\n{yaml.safe_dump(recipe, sort_keys=False, width=100)}```"
