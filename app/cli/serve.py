"""``python -m app``: serve a model store until SIGTERM or SIGINT."""

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import structlog
import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.cli.flags import read_settings
from app.engine_client.catalogue import Catalogue
from app.engine_client.client import Engines
from app.http.auth import ApiKeyError, ApiKeys
from app.http.store_reads import read_store
from app.observability.logging import configure_logging
from app.observability.tracing import Tracing, TracingUnavailable
from app.routes.examples import predict_examples
from app.settings import Settings
from app.supervisor.supervisor import RunFolderError, Supervisor

MAX_BANNER_COMMAND = 800
"""Characters of a curl command; a model with larger inputs is tried with its samples."""

log = structlog.get_logger(__name__)


class StoreError(Exception):
    """The model store is not a folder that can be read."""


def main(program: str, arguments: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT; what can never succeed is one line and exit status 2 or 3. The help names the program."""
    try:
        settings = read_settings(program, arguments)
    except ValidationError as error:
        sys.stderr.writelines(f"{_describe(problem)}\n" for problem in error.errors())
        sys.exit(2)
    configure_logging(settings.log_level, settings.log_format)
    try:  # what can never succeed ends here, and is not restarted
        ApiKeys(settings)
        _check_store(settings.model_store)
        _check_device(settings.device)
        if settings.otlp_endpoint:
            Tracing(settings.otlp_endpoint).close()
        if settings.grpc_port is not None and find_spec("grpc") is None:
            sys.stderr.write("--grpc-port needs the packages of the extra grpc\n")
            sys.exit(2)
        listeners = _listen(settings)
        metrics_listener = None if settings.metrics_port is None else _bind(settings.host, settings.metrics_port)
        if settings.grpc_port is not None:  # after the others, which would share it, too
            _bind(settings.host, settings.grpc_port).close()
    except (ApiKeyError, StoreError, TracingUnavailable) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except OSError as error:
        log.error("cannot bind port", error=str(error))
        sys.exit(3)
    _let_steps_finish()
    try:
        asyncio.run(_serve(settings, listeners, metrics_listener))
    except RunFolderError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(3)
    sys.stdout.flush()
    os._exit(0)  # whatever a thread waits for


async def _serve(settings: Settings, listeners: list[socket.socket], metrics_listener: socket.socket | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(settings, listeners, metrics_listener)

    def stop(number: signal.Signals) -> None:
        for listener in listeners:  # a port that no worker listens on is closed from now on
            listener.close()
        if stopping.is_set():
            supervisor.signal_workers(number)  # a second signal ends the draining
        supervisor.stop_workers(number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    async with supervisor:
        loop.add_signal_handler(signal.SIGHUP, supervisor.signal, signal.SIGHUP)
        host, port = listeners[0].getsockname()[:2]
        log.info("listening", host=host, port=port, http_workers=settings.http_workers, engines=len(settings.engine_configs))
        if metrics_listener is not None:
            log.info("metrics server listening", host=host, port=metrics_listener.getsockname()[1])
        banner_task = asyncio.create_task(_print_banner(settings, port, supervisor))
        await stopping.wait()
        banner_task.cancel()


async def _print_banner(settings: Settings, port: int, supervisor: Supervisor) -> None:
    async with Engines(supervisor.run_folder.sockets, settings.default_model) as engines:
        await engines.wait_until_ready()
        await supervisor.wait_until_workers_ready()
        catalogue = engines.catalogue
        typer.echo(await read_store(lambda: _banner(settings, port, catalogue)))


def _banner(settings: Settings, port: int, catalogue: Catalogue) -> str:
    if not catalogue.names:
        return f"No model in {settings.model_store} could be loaded."
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{port}"
    model = catalogue.find(catalogue.default or catalogue.names[0])
    lines = [f"Serving {', '.join(catalogue.names)} on {url}; open it in a browser, or read {url}/docs."]
    if example := next(iter(predict_examples(model, settings.model_store).values()), None):
        body = json.dumps(example["value"], separators=(",", ":"))
        path = f"/models/{model.model}/predict"
        curl = f"curl {url}{path} -H 'content-type: application/json' -d {shlex.quote(body)}"
        samples = f"{shlex.quote(os.path.relpath(sys.executable))} -m app predict --model {model.model} --url {url}"
        lines.append(f"Try: {curl if len(curl) <= MAX_BANNER_COMMAND else samples}")
    return "\n".join(lines)


def _check_store(store: Path) -> None:
    try:
        os.scandir(store).close()
    except OSError as error:
        reason = error.strerror or error
        first = "" if store.exists() else f": python -m training train digits --store {shlex.quote(str(store))} makes one"
        raise StoreError(f"--model-store must be a folder of models (got {store}: {reason}){first}") from error


def _check_device(names: str) -> None:
    """Exit with status 2 for a device that cannot be used, after asking a process of its own, as this one does not need torch."""
    if named := [name for name in map(str.strip, names.split(",")) if name not in ("auto", "cpu")]:
        checked = subprocess.run([sys.executable, "-m", "app.engine.device", *named], check=False)
        if checked.returncode:
            sys.exit(checked.returncode)


def _listen(settings: Settings) -> list[socket.socket]:
    """One socket for each worker, on the same port. They stay open here: a restarted worker serves what waits in its socket."""
    # Without reuse_port, the first one finds out whether the port is free: another server's workers would share theirs with ours.
    with _bind(settings.host, settings.port) as first:
        port = first.getsockname()[1]
    return [_bind(settings.host, port, reuse_port=True) for _ in range(settings.http_workers)]


def _bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, reuse_port=reuse_port)


def _let_steps_finish() -> None:
    """Have the processes that share a core take turns: a request would interrupt a step and evict its caches."""
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # some sandboxes forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _describe(problem: ErrorDetails) -> str:
    """``--port must be at most 65535 (got 99999)``."""
    flag = "".join(f"--{str(part).replace('_', '-')} " for part in problem["loc"][:1])
    given = f" (got {problem['input']})" if flag else ""
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("less than or equal to", "at most").replace("greater than or equal to", "at least")
    return f"{flag}{message}{given}"
