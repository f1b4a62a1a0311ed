"""The engine process: ``python -m app.engine SOCKET``, with an ``EngineConfig`` on its lifeline; ``app.supervisor`` starts it."""

# ruff: noqa: E402
import gc

gc.disable()  # until the models are loaded: collections during the imports would take a tenth of the start

import os
import sys
from pathlib import Path

from app.engine.device import choose_device, set_up_torch
from app.engine.loading import Loader
from app.engine.process import EngineProcess
from app.engine.served_models import ServedModels
from app.observability.logging import configure_logging
from app.settings import EngineConfig
from app.supervisor.lifeline import Lifeline


def main(socket: Path) -> None:
    """Load a model store and serve it until SIGTERM, or until the supervisor exits."""
    lifeline = Lifeline()
    lifeline.on_parent_exit(lambda: os._exit(0))  # whatever the main thread does
    config = EngineConfig.model_validate_json(lifeline.config)
    configure_logging(config.log_level, config.log_format)
    set_up_torch(config)
    loader = Loader(config, choose_device(config.device))
    models = ServedModels(loader, socket.with_name("unloaded.json"), socket.with_suffix(".loading.json"))
    with lifeline.beating():  # many models may take longer than a process may be silent
        models.load_all()
    gc.enable()
    gc.collect()
    gc.freeze()  # a full collection would traverse what the libraries hold, for a tenth of a second
    EngineProcess(socket, models, lifeline, config.poll_seconds).serve()


main(Path(sys.argv[1]))
