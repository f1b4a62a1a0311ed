"""Tracing: one OpenTelemetry span per request, with the phases of the engine below it; off unless an endpoint is set."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from app.engine_client.messages import Timings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

MAX_EVENTS = 128
"""Of a span; OpenTelemetry's own limit."""
TraceStep = tuple[int, dict[str, float]]
"""One iteration of the rows of a request that had a slot: when it was reported, in nanoseconds since the epoch, and what."""


class TracingUnavailable(Exception):  # noqa: N818
    """The packages for traces are not installed."""


class Tracing:
    """Sends spans to an OTLP collector, unless a ``traceparent`` says not to; ``TracingUnavailable`` without the packages."""

    def __init__(self, endpoint: str) -> None:
        try:  # they are an extra, and a server without traces starts faster without them
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingUnavailable(f"--otlp-endpoint needs the packages of the extra otel: {error}") from error
        resource = Resource({SERVICE_NAME: "jfb"}).merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME takes precedence
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=5.0)
        # All in one batch: at the end, an unreachable collector delays the exit by one timeout only.
        interval, batch = 1000.0, 10_000  # milliseconds, and spans: more are dropped while the collector accepts none
        self._provider.add_span_processor(BatchSpanProcessor(exporter, batch, interval, batch))
        self._tracer = self._provider.get_tracer("jfb")

    def start(self, headers: Mapping[str, str]) -> "Span":
        """Start the span of a request: below its client's span if it sent a ``traceparent``, else in a new trace."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(headers))
        return self._tracer.start_span("request", parent, SpanKind.SERVER)

    def end(
        self, span: "Span", name: str, attributes: Mapping[str, str | int], timings: Timings | None, steps: Sequence[TraceStep]
    ) -> None:
        """End a request's span, with one below it for each phase in the engine; ``steps`` are events of the phase ``iterate``."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        to_epoch = time.time_ns() - time.monotonic_ns()
        for phase, (begin, end) in (timings or Timings()).phases().items():
            child = self._tracer.start_span(phase, set_span_in_context(span), start_time=int(begin * 1e9) + to_epoch)
            for at, values in steps if phase == "iterate" else ():
                child.add_event("iteration", values, at)
            child.end(int(end * 1e9) + to_epoch)
        span.update_name(name)
        span.set_attributes(attributes)
        if int(attributes["http.response.status_code"]) >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send the buffered spans, for which it waits, and stop."""
        self._provider.shutdown()
