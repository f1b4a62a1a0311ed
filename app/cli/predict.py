"""``python -m app predict``: send images to a running server, and watch the fixed points form."""

import base64
import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
import typer
from pydantic import TypeAdapter, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.schemas.native import EVENT_STREAM, IterationEvent, Prediction, PredictResponse
from jfb.store import Sample

Value = TypeVar("Value")
program = typer.Typer(add_completion=False)
BLOCKS = "▁▂▃▄▅▆▇█"
MIN_WIDTH, MAX_WIDTH = 11, 40
"""Characters of a sparkline, as many as fit on a line; longer series are thinned."""
STYLES = {"converged": "green", "label_stable": "green", "max_iterations": "yellow", "deadline": "yellow", "diverged": "red"}


class PredictFailed(Exception):  # noqa: N818
    """The server cannot be reached, or answered with an error."""


@program.command()
def predict(
    images: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="PNG or JPEG files; the samples of --model if there are none."),
    ] = None,
    url: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Name of the model; the server's default model unless set.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Tolerance of the residual; the model's default unless set.")] = None,
    key: Annotated[str | None, typer.Option(envvar="JFB_KEY", help="API key, if the server requires one.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Draw the residuals while the server iterates.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the response as JSON instead of a table.")] = False,
) -> None:
    """Send images to a running server and print one row each: its label and its cost."""
    if not images and model is None:
        raise typer.BadParameter("give image files, or --model NAME to send that model's samples", param_hint="IMAGES")
    if watch and as_json:
        raise typer.BadParameter("must not be used with --watch", param_hint="--json")
    server = url.rstrip("/")
    path = f"{server}/predict" if model is None else f"{server}/models/{model}/predict"
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        if images:
            names = [image.name for image in images]
            body: dict[str, object] = {"images": [base64.b64encode(image.read_bytes()).decode() for image in images]}
        else:
            samples = _samples(f"{server}/models/{model}/samples", headers)
            names, body = [f"sample of {one.label}" for one in samples], {"inputs": [one.input for one in samples]}
        if tolerance is not None:
            body["tolerance"] = tolerance
        events = _events(path, headers | ({"accept": EVENT_STREAM} if watch else {}), body)
        if as_json:
            (response,) = events
            typer.echo(response.model_dump_json(exclude_unset=True))
        else:
            _show(Console(), names, events, watch=watch)
    except PredictFailed as error:
        Console(stderr=True, soft_wrap=True).print(Text(str(error), "red"))
        raise typer.Exit(1) from error


def sparkline(residuals: list[float | None], width: int = MAX_WIDTH) -> str:
    """Residuals as blocks on a log axis, ``!`` where one is not finite; of more than ``width``, evenly spread ones."""
    if len(residuals) > width:
        residuals = [residuals[round(k * (len(residuals) - 1) / (width - 1))] for k in range(width)]
    powers = [math.log10(one) for one in residuals if one]
    low, high = min(powers, default=0.0), max(powers, default=0.0)

    def block(residual: float | None) -> str:
        if residual is None:
            return "!"
        share = (math.log10(residual) - low) / (high - low) if residual and high > low else 0.0
        return BLOCKS[round(share * (len(BLOCKS) - 1))]

    return "".join(map(block, residuals))


def _show(console: Console, names: list[str], events: Iterator[IterationEvent | PredictResponse], *, watch: bool) -> None:
    """Print the table of the response; with ``watch``, update it until then."""
    rows: list[Prediction | IterationEvent | None] = [None] * len(names)
    residuals: list[list[float | None]] = [[] for _ in names]
    first = next(events)  # before anything is drawn: an error response is raised here

    def table() -> Table:
        plain = _table(names, rows)
        if not watch:
            return plain
        width = max(MIN_WIDTH, min(MAX_WIDTH, console.width - console.measure(plain).maximum - 2))
        return _table(names, rows, [sparkline(one, width) for one in residuals])

    live = Live(console=console, get_renderable=table, refresh_per_second=20, transient=True)
    with live if watch else nullcontext():
        for event in chain([first], events):
            if isinstance(event, PredictResponse):
                rows[:] = event.predictions
            else:
                rows[event.row] = event
                residuals[event.row].append(event.residual)
    console.print(table())


def _table(names: list[str], rows: list[Prediction | IterationEvent | None], sparklines: list[str] | None = None) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("image", "label"):
        table.add_column(column, overflow="fold")
    for column in ("probability", "iterations", "residual"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    if sparklines is not None:
        table.add_column("convergence", no_wrap=True)
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        line = [] if sparklines is None else [Text(sparklines[place], "cyan")]
        table.add_row(Text(name), *_cells(row), *line)
    return table


def _cells(row: Prediction | IterationEvent | None) -> list[Text]:
    match row:
        case None:
            return [Text("")] * 4 + [Text("waiting", "dim")]
        case IterationEvent():
            best = row.top[0] if row.top else None
            label, share = (best.label, best.probability) if best else (None, None)
            iterations, status = row.iteration, Text("iterating", "dim")
        case Prediction():
            label = row.label
            share = row.probabilities[row.index] if row.probabilities is not None and row.index is not None else None
            iterations, status = row.iterations, Text(row.status, STYLES[row.status])
    numbers = "" if share is None else f"{share:.1%}", str(iterations), "" if row.residual is None else f"{row.residual:.2g}"
    return [Text("–" if label is None else label, "bold"), *map(Text, numbers), status]


def _events(path: str, headers: dict[str, str], body: dict[str, object]) -> Iterator[IterationEvent | PredictResponse]:
    """The response, after the events before it if ``headers`` accept them."""
    try:
        with httpx.stream("POST", path, json=body, headers=headers, timeout=None) as response:
            if response.is_success and response.headers.get("content-type", "").startswith(EVENT_STREAM):
                yield from _streamed(response)
            else:
                response.read()
                yield _response(response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PredictFailed(f"could not reach {path}: {error}") from error


def _streamed(response: httpx.Response) -> Iterator[IterationEvent | PredictResponse]:
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data" and name == "iteration":
            yield _decoded(value, IterationEvent.model_validate_json)
        elif field == "data" and name == "answer":
            yield _decoded(value, PredictResponse.model_validate_json)
            return
        elif field == "data":
            raise PredictFailed(json.loads(value)["error"])
    raise PredictFailed(f"{response.url}: the stream ended before the answer")


def _samples(path: str, headers: dict[str, str]) -> list[Sample]:
    try:
        response = httpx.get(path, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PredictFailed(f"could not reach {path}: {error}") from error
    _raise_for_status(response)
    if not (samples := _decoded(response.content, TypeAdapter(list[Sample]).validate_json)):
        raise PredictFailed(f"{path}: the model has no samples: give image files")
    return samples


def _response(response: httpx.Response) -> PredictResponse:
    _raise_for_status(response)
    return _decoded(response.content, PredictResponse.model_validate_json)


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        reason = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # not from our server
        reason = f"{response.url}: {response.reason_phrase or 'not an answer of this server'}"
    raise PredictFailed(f"{response.status_code}: {reason}")


def _decoded(content: str | bytes, parse: Callable[[str | bytes], Value]) -> Value:
    try:
        return parse(content)
    except ValidationError as error:
        raise PredictFailed(f"not an answer of this server: {error.errors()[0]['msg']}") from error
