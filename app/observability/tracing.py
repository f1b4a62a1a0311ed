"""Tracing: one OpenTelemetry span per request, with the phases of the engine below it; off unless an endpoint is set."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from app.engine_client.messages import Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

MAX_BUFFERED_SPANS = 10_000
"""While the collector does not accept any; the oldest are dropped then."""
MAX_EVENTS = 128
"""Of a span; OpenTelemetry's own limit."""
EXPORT_INTERVAL_SECONDS = 1.0
EXPORT_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger(__name__)


class TracingUnavailable(Exception):  # noqa: N818
    """The packages for traces are not installed."""


@dataclass(frozen=True)
class TraceStep:
    """One iteration of the rows of a request that had a slot."""

    at: float
    """When it was reported, in seconds of ``time.monotonic()``."""
    iteration: int
    """The highest k among the rows."""
    residual: float
    """The largest."""
    rows: int


@dataclass(frozen=True)
class Trace:
    """A request's place in a trace."""

    span: "SpanContext"
    parent: "SpanContext | None"
    started: int
    """In nanoseconds since the epoch."""

    @property
    def is_sampled(self) -> bool:
        """Whether it is sent at all."""
        return bool(self.span.trace_flags.sampled)

    @property
    def id(self) -> str:
        """The trace id, 32 hexadecimal digits."""
        return f"{self.span.trace_id:032x}"


class Tracing:
    """Sends spans to an OTLP collector over HTTP.

    Every request is traced, except those whose client says in its ``traceparent`` that it does not sample the trace. The SDK's
    ``TracerProvider`` is not needed: a request's spans are all known when it ends.

    Args:
        endpoint: of the collector, such as ``http://localhost:4318``.

    Raises:
        TracingUnavailable: without the packages of the extra ``otel``.
    """

    def __init__(self, endpoint: str) -> None:
        try:  # they are an extra, and a server without traces starts faster without them
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        except ImportError as error:
            raise TracingUnavailable(f"--otlp-endpoint needs the packages of the extra otel: {error}") from error
        self._exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_SECONDS)
        self._resource = Resource({SERVICE_NAME: "jfb"}).merge(
            OTELResourceDetector().detect()
        )  # OTEL_SERVICE_NAME takes precedence
        self._ids = RandomIdGenerator()
        self._spans: deque[ReadableSpan] = deque(maxlen=MAX_BUFFERED_SPANS)

    def start(self, headers: Mapping[str, str]) -> Trace:
        """Start the trace of a request: below its client's span if it sent a ``traceparent``, else a new one."""
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
        timings: Timings | None,
        steps: Sequence[TraceStep] = (),
    ) -> None:
        """Buffer a request's span to be sent, and one below it for each phase that it went through in the engine.

        That of the phase ``iterate`` gets an event for each of ``steps``, at most ``MAX_EVENTS``.
        """
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

        span = trace.span
        if not trace.is_sampled:
            return

        def add(context: SpanContext, name: str, begin: int, end: int, **more: Any) -> None:
            self._spans.append(ReadableSpan(name, context, resource=self._resource, start_time=begin, end_time=end, **more))

        to_epoch = time.time_ns() - time.monotonic_ns()
        events = [
            Event(
                "iteration",
                {"jfb.iteration": step.iteration, "jfb.residual": step.residual, "jfb.rows": step.rows},
                int(step.at * 1e9) + to_epoch,
            )
            for step in steps
        ]
        for phase, (begin, end) in (timings or Timings()).phases().items():
            child = SpanContext(span.trace_id, self._ids.generate_span_id(), False, span.trace_flags)
            iterations = {"events": events} if phase == "iterate" else {}
            add(child, phase, int(begin * 1e9) + to_epoch, int(end * 1e9) + to_epoch, parent=span, **iterations)
        failed = int(attributes["http.response.status_code"]) >= 500
        status = Status(StatusCode.ERROR if failed else StatusCode.UNSET)
        more = {"parent": trace.parent, "attributes": dict(attributes), "kind": SpanKind.SERVER, "status": status}
        add(span, name, trace.started, time.time_ns(), **more)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send the buffered spans every second, and the rest at the end."""
        task = asyncio.create_task(self._send_periodically())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._send()
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    async def _send_periodically(self) -> None:
        while True:
            await asyncio.sleep(EXPORT_INTERVAL_SECONDS)
            await self._send()

    async def _send(self) -> None:
        spans = [self._spans.popleft() for _ in range(len(self._spans))]
        if spans:
            result = await asyncio.to_thread(self._exporter.export, spans)  # logs its own errors
            log.debug("spans sent", spans=len(spans), result=result.name)
