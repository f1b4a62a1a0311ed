"""``python -m app predict``: send images to a running server, and watch the fixed points form."""

import base64
import json
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
import typer
from pydantic import BaseModel, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.schemas.native import IterationEvent, Prediction, PredictResponse

Kind = TypeVar("Kind", bound=BaseModel)

program = typer.Typer(add_completion=False)

BLOCKS = "▁▂▃▄▅▆▇█"
MAX_WIDTH = 40
"""Characters of a sparkline; longer series are thinned."""
STYLES = {"converged": "green", "label_stable": "green", "max_iterations": "yellow", "deadline": "yellow", "diverged": "red"}


class PredictFailed(Exception):  # noqa: N818
    """The server cannot be reached, or answered with an error."""


@program.command()
def predict(
    images: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="PNG or JPEG files.")],
    url: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Name of the model; the server's default model unless set.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Tolerance of the residual; the model's default unless set.")] = None,
    key: Annotated[str | None, typer.Option(envvar="JFB_KEY", help="API key, if the server requires one.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Draw the residuals while the server iterates.")] = False,
) -> None:
    """Send images to a running server and print one row each: its label and its cost."""
    console = Console()
    names = [image.name for image in images]
    body: dict[str, object] = {"images": [base64.b64encode(image.read_bytes()).decode() for image in images]}
    if tolerance is not None:
        body["tolerance"] = tolerance
    path = f"{url.rstrip('/')}/predict" if model is None else f"{url.rstrip('/')}/models/{model}/predict"
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        if watch:
            _watch(console, names, _events(path, headers, body))
        else:
            response = _post(path, headers, body)
            console.print(_table(names, list(response.predictions), None))
    except PredictFailed as error:
        Console(stderr=True, soft_wrap=True).print(Text(str(error), "red"))
        raise typer.Exit(1) from error


def sparkline(residuals: list[float | None]) -> str:
    """Residuals as blocks of eight heights on a log axis from the smallest to the largest; ``!`` where one is not finite.

    More than ``MAX_WIDTH`` are thinned evenly; the first and the last are kept.
    """
    if len(residuals) > MAX_WIDTH:
        residuals = [residuals[round(k * (len(residuals) - 1) / (MAX_WIDTH - 1))] for k in range(MAX_WIDTH)]
    powers = [math.log10(one) for one in residuals if one]
    low, high = min(powers, default=0.0), max(powers, default=0.0)

    def block(residual: float | None) -> str:
        if residual is None:
            return "!"
        share = (math.log10(residual) - low) / (high - low) if residual and high > low else 0.0
        return BLOCKS[round(share * (len(BLOCKS) - 1))]

    return "".join(map(block, residuals))


def _watch(console: Console, names: list[str], events: Iterator[IterationEvent | PredictResponse]) -> None:
    """Update a table until the response is complete."""
    rows: list[Prediction | IterationEvent | None] = [None] * len(names)
    residuals: list[list[float | None]] = [[] for _ in names]
    first = next(events)  # before anything is drawn: an error response is raised here
    with Live(console=console, get_renderable=lambda: _table(names, rows, residuals), refresh_per_second=20, transient=True):
        for event in chain([first], events):
            if isinstance(event, PredictResponse):
                rows[:] = event.predictions
            else:
                rows[event.row] = event
                residuals[event.row].append(event.residual)
    console.print(_table(names, rows, residuals))


def _table(
    names: list[str],
    rows: list[Prediction | IterationEvent | None] | list[Prediction],
    residuals: list[list[float | None]] | None,
) -> Table:
    table = Table("image", "label", box=SIMPLE_HEAD)
    for column in ("probability", "iterations", "residual"):
        table.add_column(column, justify="right")
    table.add_column("status")
    if residuals is not None:
        table.add_column("convergence", no_wrap=True)
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        cells = [Text(name), *_cells(row)]
        if residuals is not None:
            cells.append(Text(sparkline(residuals[place]), "cyan"))
        table.add_row(*cells)
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
    residual = "" if row.residual is None else f"{row.residual:.2g}"
    return [
        Text("–" if label is None else label, "bold"),
        Text("" if share is None else f"{share:.1%}"),
        Text(str(iterations)),
        Text(residual),
        status,
    ]


def _post(path: str, headers: dict[str, str], body: dict[str, object]) -> PredictResponse:
    try:
        response = httpx.post(path, json=body, headers=headers, timeout=None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(path, error) from error
    _check(response)
    return _decoded(response.content, PredictResponse)


def _events(path: str, headers: dict[str, str], body: dict[str, object]) -> Iterator[IterationEvent | PredictResponse]:
    """Server-sent events, the last of them the response."""
    headers = headers | {"accept": "text/event-stream"}
    try:
        with httpx.stream("POST", path, json=body, headers=headers, timeout=None) as response:
            if response.is_error:
                response.read()
            _check(response)
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name == "iteration":
                    yield _decoded(value.encode(), IterationEvent)
                elif field == "data" and name == "answer":
                    yield _decoded(value.encode(), PredictResponse)
                    return
                elif field == "data":
                    raise PredictFailed(json.loads(value)["error"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(path, error) from error
    raise PredictFailed(f"{path}: the stream ended before the answer")


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        reason = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # not from our server
        reason = f"{response.url}: {response.reason_phrase or 'not an answer of this server'}"
    raise PredictFailed(f"{response.status_code}: {reason}")


def _decoded(content: bytes, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise PredictFailed(f"not an answer of this server: {error.errors()[0]['msg']}") from error


def _unreachable(path: str, error: Exception) -> PredictFailed:
    return PredictFailed(f"could not reach {path}: {error}")
