"""GET metrics: counters for Prometheus."""

from collections.abc import Iterator
from contextlib import suppress

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine_client.errors import EngineDied
from app.http.state import Server, ServerOfRequest
from app.observability.histogram import LABELS, add

router = APIRouter(tags=["health"])

LOOK_SECONDS = 1.0
"""How long the engine may take for fresh numbers; after that, the last known ones are given."""

COUNTERS = {
    "ticks": "Iterations of the running batch.",
    "step_evaluations": "Rows summed over the ticks: the work that was done.",
    "iterations": "Iterations summed over the rows that ended: the work that was asked for.",
    "rows_ended": "Rows that ended.",
}
GAUGES = {
    "active_rows": "Rows that iterate now.",
    "waiting_rows": "Rows that wait for a slot.",
    "slots": "Rows that can iterate together.",
}


class EngineCollector(Collector):
    """The engine's counters, as it last told them; they begin anew when it is restarted, as Prometheus expects."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        engine = self._server.engine
        yield GaugeMetricFamily("jfb_engine_ready", "Whether the engine is up.", value=float(engine.ready))
        yield CounterMetricFamily("jfb_engine_restarts", "Times that the engine was restarted.", value=engine.restarts)
        yield GaugeMetricFamily(
            "jfb_engine_ends_in_a_row",
            "Engines that ended soon after their start, one after the other.",
            value=engine.ends_in_a_row,
        )
        counters = engine.client.state.counters if engine.client.state else []
        versions = GaugeMetricFamily("jfb_engine_versions", "Versions that are served.", labels=["model"])
        for model in dict.fromkeys(one.model for one in counters):
            versions.add_metric([model], sum(one.model == model for one in counters))
        yield versions
        sizes = HistogramMetricFamily("jfb_engine_batch_rows", "Rows of the batch, a tick.", labels=LABELS)
        for one in counters:
            bounds = [2**power for power in range(len(one.batch_sizes))]
            add(sizes, [one.model, str(one.version)], bounds, [*one.batch_sizes, 0], one.step_evaluations)
        yield sizes
        for family, names in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for name, meaning in names.items():
                metric = family(f"jfb_engine_{name}", meaning, labels=LABELS)
                for one in counters:
                    metric.add_metric([one.model, str(one.version)], getattr(one, name))
                yield metric


def install(server: Server) -> None:
    """Have the engine's counters in the server's registry."""
    server.metrics.register(EngineCollector(server))


@router.get(
    "/metrics", summary="Counters for Prometheus", responses={200: {"content": {"text/plain": {}}}}, response_class=Response
)
async def metrics(server: ServerOfRequest) -> Response:
    with suppress(EngineDied, TimeoutError):
        await server.engine.client.look(LOOK_SECONDS)
    return Response(generate_latest(server.metrics), media_type=CONTENT_TYPE_LATEST)
