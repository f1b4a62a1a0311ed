"""Tracing: one OpenTelemetry span a request, with the phases of the engine below it; off unless an endpoint is set."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from app.engine_client.messages import Moments
from app.observability.metrics import phases

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

MOST_SPANS_HELD = 10_000
"""While the collector does not take any; the oldest are dropped then."""
MOST_EVENTS = 128
"""Of a span; OpenTelemetry's own limit."""
SECONDS_BETWEEN_EXPORTS = 1.0
EXPORT_SECONDS = 5.0
"""How long the collector may take."""

log = structlog.get_logger(__name__)


class TracingMissing(Exception):  # noqa: N818
    """The packages for traces are not installed."""


@dataclass(frozen=True)
class Step:
    """What one iteration came to for the rows of a request that had a slot."""

    at: float
    """When it was told, in seconds of ``time.monotonic()``."""
    iteration: int
    """The highest k among the rows."""
    residual: float
    """The largest."""
    rows: int


@dataclass(frozen=True)
class Trace:
    """A request's place in a trace."""

    own: "SpanContext"
    parent: "SpanContext | None"
    began: int
    """In nanoseconds since the epoch."""

    @property
    def is_sampled(self) -> bool:
        """Whether it is to be sent at all."""
        return bool(self.own.trace_flags.sampled)

    @property
    def id(self) -> str:
        """Of the trace, 32 hexadecimal digits."""
        return f"{self.own.trace_id:032x}"


class Tracing:
    """Sends spans to an OTLP collector over HTTP.

    Every request is traced, but for those whose client says in its ``traceparent`` that it does not sample the trace.

    The SDK's ``TracerProvider`` is not used: it works after every fork, also in the process that is about to become an
    engine, and hangs there. What it would do is little, as a request's spans are all known when it ends.

    Args:
        endpoint: of the collector, such as ``http://localhost:4318``.

    Raises:
        TracingMissing: without the packages of the extra ``otel``.
    """

    def __init__(self, endpoint: str) -> None:
        try:  # they are an extra, and a server without traces starts faster without them
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        except ImportError as error:
            raise TracingMissing(f"otlp_endpoint: expected the packages of the extra otel to be there, got: {error}") from error
        self._exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
        self._resource = Resource({SERVICE_NAME: "jfb"}).merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME goes before
        self._ids = RandomIdGenerator()
        self._ended: deque[ReadableSpan] = deque(maxlen=MOST_SPANS_HELD)

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """Give a request its place: below its client's span if it sent a ``traceparent``, else in a trace of its own."""
        from opentelemetry.trace import SpanContext, TraceFlags, get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = get_current_span(TraceContextTextMapPropagator().extract(dict(headers))).get_span_context()
        parent = sent if sent.is_valid else None
        trace_id = parent.trace_id if parent else self._ids.generate_trace_id()
        flags = parent.trace_flags if parent else TraceFlags(TraceFlags.SAMPLED)
        return Trace(SpanContext(trace_id, self._ids.generate_span_id(), False, flags), parent, time.time_ns())

    def end(
        self,
        trace: Trace,
        name: str,
        attributes: Mapping[str, str | int],
        moments: Moments | None,
        steps: Sequence[Step] = (),
    ) -> None:
        """Keep a request's span, and one below it for each phase that it went through in the engine, to be sent.

        The one of the phase ``iterate`` gets an event for each of ``steps``, at most ``MOST_EVENTS``.
        """
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

        own = trace.own
        if not trace.is_sampled:
            return

        def keep(context: SpanContext, name: str, begin: int, end: int, **more: Any) -> None:
            self._ended.append(ReadableSpan(name, context, resource=self._resource, start_time=begin, end_time=end, **more))

        to_epoch = time.time_ns() - time.monotonic_ns()
        events = [
            Event(
                "iteration",
                {"jfb.iteration": step.iteration, "jfb.residual": step.residual, "jfb.rows": step.rows},
                int(step.at * 1e9) + to_epoch,
            )
            for step in steps
        ]
        for phase, (begin, end) in phases(moments or Moments()).items():
            below = SpanContext(own.trace_id, self._ids.generate_span_id(), False, own.trace_flags)
            told = {"events": events} if phase == "iterate" else {}
            keep(below, phase, int(begin * 1e9) + to_epoch, int(end * 1e9) + to_epoch, parent=own, **told)
        failed = int(attributes["http.response.status_code"]) >= 500
        status = Status(StatusCode.ERROR if failed else StatusCode.UNSET)
        facts = {"parent": trace.parent, "attributes": dict(attributes), "kind": SpanKind.SERVER, "status": status}
        keep(own, name, trace.began, time.time_ns(), **facts)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send the spans that have ended every second, and the rest at the end."""
        task = asyncio.create_task(self._send_on())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._send()
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    async def _send_on(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_EXPORTS)
            await self._send()

    async def _send(self) -> None:
        spans = [self._ended.popleft() for _ in range(len(self._ended))]
        if spans:
            result = await asyncio.to_thread(self._exporter.export, spans)  # which logs what went wrong
            log.debug("sent spans", spans=len(spans), result=result.name)
