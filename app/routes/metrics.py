"""GET metrics: counters for Prometheus."""

from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine_client.messages import Counters
from app.http.auth import AccessRoute, anyone
from app.http.state import AppState, State
from app.observability.metrics import add_histogram
from app.supervisor.process import read_status

router = APIRouter(tags=["health"], route_class=AccessRoute, dependencies=[Depends(anyone)])
LABELS = ["engine", "model", "version"]
COUNTERS = {
    "ticks": "Iterations of the running batch.",
    "step_evaluations": "Rows summed over the ticks: the work that was done.",
    "iterations": "Iterations summed over the rows that ended: the work that was requested.",
    "wasted_iterations": "Iterations of free slots, and of rows that had ended: the work that was done in vain.",
    "rows_ended": "Rows that ended.",
}
GAUGES = {
    "active_rows": "Rows that iterate now.",
    "waiting_rows": "Rows that wait for a slot.",
    "slots": "Rows that can iterate together.",
}


class EngineCollector(Collector):
    """The engines' processes and counters; the counters start again from 0 with their process, as Prometheus expects."""

    def __init__(self, state: AppState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        engine = ["engine"]
        ready = GaugeMetricFamily("jfb_engine_ready", "Whether the engine is up.", labels=engine)
        restarts = CounterMetricFamily("jfb_engine_restarts", "Restarts of the engine.", labels=engine)
        meaning = "Exits of the engine, each soon after its start."
        exits = GaugeMetricFamily("jfb_engine_consecutive_exits", meaning, labels=engine)
        for number, file in enumerate(self._state.run_folder.status_files):
            status = read_status(file)
            ready.add_metric([str(number)], float(status.ready))
            restarts.add_metric([str(number)], status.restarts)
            exits.add_metric([str(number)], status.consecutive_exits)
        yield from (ready, restarts, exits)
        versions = GaugeMetricFamily("jfb_engine_versions", "Versions that are served.", labels=["engine", "model"])
        sizes = HistogramMetricFamily("jfb_engine_batch_rows", "Rows of the batch per tick.", labels=LABELS)
        counters: list[tuple[list[str], Counters]] = []
        for number, state in self._state.engines.states.items():
            for model, count in Counter(one.model for one in state.counters).items():
                versions.add_metric([str(number), model], count)
            counters += [([str(number), one.model, str(one.version)], one) for one in state.counters]
        for labels, one in counters:
            bounds = [2**power for power in range(len(one.batch_sizes))]
            add_histogram(sizes, labels, bounds, [*one.batch_sizes, 0], one.step_evaluations)
        yield from (versions, sizes)
        for name, meaning in (COUNTERS | GAUGES).items():
            family = CounterMetricFamily if name in COUNTERS else GaugeMetricFamily
            metric = family(f"jfb_engine_{name}", meaning, labels=LABELS)
            for labels, one in counters:
                metric.add_metric(labels, getattr(one, name))
            yield metric


async def refresh(state: AppState) -> None:
    """Have engines and workers write what they have counted so far."""
    await state.engines.refresh(1.0)  # if it takes longer, the last numbers are used
    state.request_log.write()
    if state.settings.http_workers > 1:
        await state.request_log.wait_for_all()


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
async def metrics(state: State) -> Response:
    await refresh(state)
    return Response(generate_latest(state.registry), media_type=CONTENT_TYPE_LATEST)
