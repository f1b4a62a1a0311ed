"""The application: routes, errors and middleware around the engines."""

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from app.http import errors
from app.http.middleware import RequestMiddleware
from app.http.state import AppState
from app.routes import ...
from app.settings import Settings
from app.supervisor.supervisor import RunFolder, Supervisor


def create_app(settings: Settings | None = None, run_folder: RunFolder | None = None) -> FastAPI:
    """Build the application; ``uvicorn --factory app.main:create_app`` reads the settings from the environment.

    Args:
        settings: those of the environment if None.
        run_folder: of the supervisor whose engines the application uses; None supervises engines of its own.
    """
