"""Ray Serve: the same application on as many machines as a Ray cluster has, one engine a replica.

``serve run app.ray:application`` starts it; ``serve run app.ray:application gpus=0.5 most_replicas=8`` with more. Settings
are read from the environment where that is typed, and the model store must be at the same path wherever a replica may run.
Ray's proxy listens (port 8000 unless Ray is told otherwise) and takes its health checks at ``/-/healthz``; ``JFB_HOST``,
``JFB_PORT`` and ``JFB_DRAIN_SECONDS`` mean nothing here. ``/metrics`` is that of one replica, whichever is asked: for a fleet
read Ray's own.

Needs the extra ``ray``.
"""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from app.http.state import Server
from app.main import create_app
from app.observability import logging as log
from app.routes import health
from app.settings import Settings

HEALTH_SECONDS = 30.0
"""How long a replica may be without a ready engine, or not answer, until it is replaced."""


class Replicas(BaseModel):
    """How many replicas there are, and what each of them has; each is also an argument of ``serve run``: ``gpus=0.5``."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    least_replicas: int = Field(default=1, ge=1)
    """Replicas when nobody asks."""
    most_replicas: int = Field(default=4, ge=1)
    """Replicas at most."""
    ongoing_requests: float = Field(default=64.0, gt=0)
    """Requests in flight, a replica, that autoscaling aims at: with one row each, those that fill the slots."""
    most_ongoing_requests: int = Field(default=512, ge=1)
    """Requests in flight at most, a replica; more of them wait in Ray's proxy."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs that Ray sets aside for a replica."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray sets aside for a replica; with 0.5 two replicas share one."""


class Replica:
    """One engine and the HTTP application before it; a subclass that Ray makes of this one holds the application as ``app``."""

    app: FastAPI

    async def check_health(self) -> None:
        """Return when the engine is ready; Ray sends requests from then on, and replaces a replica where this fails.

        Raises:
            Refusal: if the store holds no model that loads.
        """
        server: Server = self.app.state.server
        await server.engine.start()
        await health.ready(server)


def application(replicas: Replicas) -> serve.Application:
    """Build the Ray Serve application; it serves what ``Settings`` says, read here and now."""
    settings = Settings()
    # Replicas have a working folder of their own, and no port.
    settings = settings.model_copy(update={"model_store": settings.model_store.absolute(), "port": 0})

    def build() -> FastAPI:
        log.configure(settings.log_level, settings.log_format)
        return create_app(settings)

    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name="jfb",
        max_ongoing_requests=replicas.most_ongoing_requests,
        autoscaling_config={
            "min_replicas": replicas.least_replicas,
            "max_replicas": replicas.most_replicas,
            "target_ongoing_requests": replicas.ongoing_requests,
        },
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        health_check_timeout_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=HEALTH_SECONDS,
    )
    bound: serve.Application = deployment.bind()
    return bound
