"""Ray Serve: the same application on as many machines as a Ray cluster has, with engines of its own in each replica.

``serve run app.ray:application`` starts it; ``serve run app.ray:application gpus=0.5 max_replicas=8`` sets more. Settings are
read from the environment of that command, and the model store must be at the same path on every machine. Ray's proxy listens
(port 8000 by default) and is checked at ``/-/healthz``; ``JFB_HOST``, ``JFB_PORT``, ``JFB_HTTP_WORKERS`` and
``JFB_DRAIN_SECONDS`` have no effect. ``/metrics`` is that of the replica that answers: for a fleet, read Ray's own.

Needs the extra ``ray``.
"""

from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve

from app.main import create_app
from app.observability.logging import configure_logging
from app.routes import health
from app.settings import Settings

HEALTH_SECONDS = 30.0
"""How long a replica may be without a ready engine, or not answer, before it is replaced."""


class Replicas(BaseModel, extra="forbid"):
    """How many replicas there are, and what each of them has; each is also an argument of ``serve run``: ``gpus=0.5``."""

    min_replicas: int = Field(1, ge=1, description="Replicas without load.")
    max_replicas: int = Field(4, ge=1, description="Replicas at most.")
    target_ongoing_requests: float = Field(64.0, gt=0, description="Requests in flight per replica that autoscaling aims at.")
    max_ongoing_requests: int = Field(512, ge=1, description="Per replica; more of them wait in Ray's proxy.")
    cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves for a replica.")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for a replica; with 0.5, two replicas share one.")


class Replica:
    """The HTTP application with its engines; the subclass that Ray makes of this class holds the application as ``app``."""

    app: FastAPI

    async def check_health(self) -> None:
        """Return when an engine is ready: Ray replaces a replica where this fails. ``ApiError`` if no model can be loaded."""
        state = self.app.state.server
        await state.engines.wait_until_ready()
        await health.server_ready(state)


def application(replicas: Replicas) -> serve.Application:
    """Build the Ray Serve application; its settings are read from the environment here."""
    settings = Settings()
    # Replicas have a working folder of their own, and no port.
    settings = settings.model_copy(update={"model_store": settings.model_store.absolute(), "port": 0, "grpc_port": None})

    def build() -> FastAPI:
        configure_logging(settings.log_level, settings.log_format)
        return create_app(settings)

    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name="jfb",
        max_ongoing_requests=replicas.max_ongoing_requests,
        autoscaling_config=replicas.model_dump(include={"min_replicas", "max_replicas", "target_ongoing_requests"}),
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        health_check_timeout_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=HEALTH_SECONDS,
    )
    bound: serve.Application = deployment.bind()
    return bound
