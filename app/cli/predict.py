"""The terminal client: ask a running server about images, and see the fixed points form."""

import base64
import json
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.schemas.native import IterationEvent, PredictAnswer, Prediction

Kind = TypeVar("Kind", IterationEvent, PredictAnswer)

program = typer.Typer(add_completion=False)

BLOCKS = "▁▂▃▄▅▆▇█"
WIDEST = 40
"""Characters of a sparkline; longer courses are thinned."""
STYLES = {"converged": "green", "label_stable": "green", "max_iterations": "yellow", "deadline": "yellow", "diverged": "red"}


class NoAnswer(Exception):  # noqa: N818 - the one thing that can go wrong here
    """The server did not answer, or refused; the message is for people."""


@program.command()
def predict(
    images: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="PNG or JPEG files.")],
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="The model to ask; the server's default model unless set.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="How exact; the model's default unless set.")] = None,
    key: Annotated[str | None, typer.Option(envvar="JFB_KEY", help="For a server that wants one.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Draw the residuals as the iteration goes on.")] = False,
) -> None:
    """Ask a running server about images: a row each with its label, and what that cost."""
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
            answer = _ask(path, headers, body)
            console.print(_table(names, list(answer.predictions), None))
    except NoAnswer as error:
        Console(stderr=True, soft_wrap=True).print(Text(str(error), "red"))
        raise typer.Exit(1) from error


def sparkline(residuals: list[float | None]) -> str:
    """Residuals as blocks of eight heights on a log axis from the smallest to the largest; ``!`` where one is not finite.

    More than ``WIDEST`` are thinned evenly, the first and the last of them kept.
    """
    if len(residuals) > WIDEST:
        residuals = [residuals[round(k * (len(residuals) - 1) / (WIDEST - 1))] for k in range(WIDEST)]
    powers = [math.log10(one) for one in residuals if one]
    low, high = min(powers, default=0.0), max(powers, default=0.0)

    def block(residual: float | None) -> str:
        if residual is None:
            return "!"
        share = (math.log10(residual) - low) / (high - low) if residual and high > low else 0.0
        return BLOCKS[round(share * (len(BLOCKS) - 1))]

    return "".join(map(block, residuals))


def _watch(console: Console, names: list[str], events: Iterator[IterationEvent | PredictAnswer]) -> None:
    """Keep a table up to date until the answer is there."""
    rows: list[Prediction | IterationEvent | None] = [None] * len(names)
    residuals: list[list[float | None]] = [[] for _ in names]
    first = next(events)  # before anything is drawn, as it is where a refusal comes
    with Live(console=console, get_renderable=lambda: _table(names, rows, residuals), refresh_per_second=20, transient=True):
        for event in chain([first], events):
            if isinstance(event, PredictAnswer):
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


def _ask(path: str, headers: dict[str, str], body: dict[str, object]) -> PredictAnswer:
    try:
        response = httpx.post(path, json=body, headers=headers, timeout=None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(path, error) from error
    _check(response)
    return _decoded(response.content, PredictAnswer)


def _events(path: str, headers: dict[str, str], body: dict[str, object]) -> Iterator[IterationEvent | PredictAnswer]:
    """Server-sent events, the last of them the answer."""
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
                    yield _decoded(value.encode(), PredictAnswer)
                    return
                elif field == "data":
                    raise NoAnswer(json.loads(value)["error"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(path, error) from error
    raise NoAnswer(f"{path}: expected an answer, got the end of the stream")


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        reason = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # not from our server
        reason = f"{response.url}: {response.reason_phrase or 'no answer of this kind of server'}"
    raise NoAnswer(f"{response.status_code}: {reason}")


def _decoded(content: bytes, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise NoAnswer(f"expected an answer of this kind of server, got something else: {error}") from error


def _unreachable(path: str, error: Exception) -> NoAnswer:
    return NoAnswer(f"{path}: the server cannot be reached: {error}")
