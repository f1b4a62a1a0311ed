"""RequestLog: counts and logs requests, in batches: one by one, each with cold caches, it would take a sixth of their time."""

import asyncio
import time
from contextvars import Context
from datetime import UTC, datetime

import structlog

from app.observability.metrics import Metrics
from app.observability.record import RequestRecord

log = structlog.get_logger(__name__)

WRITE_SECONDS = 0.05
"""How long a record, and what it adds to the counts, is in the memory of its worker only, at most."""
MAX_UNLOGGED = 16
"""Records that are logged at a time: other requests wait for them."""
QUIET_ROUTES = ("/health", "/v2/health/live", "/v2/health/ready", "/metrics")
"""Programs request these every few seconds; they are logged at the level debug."""


class RequestLog:
    """The requests that have been answered; they are counted and logged within ``WRITE_SECONDS``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._unlogged: list[RequestRecord] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, record: RequestRecord) -> None:
        """Count and log a request soon, which has been answered now."""
        record.ended = time.time()
        self._unlogged.append(record)
        loop = asyncio.get_running_loop()
        if self._timer is None:  # in a context of its own, as log lines have the fields of the request whose context it is
            self._timer = loop.call_later(WRITE_SECONDS, self.write, context=Context())
        if len(self._unlogged) == MAX_UNLOGGED:
            loop.call_soon(self._log, context=Context())

    def write(self) -> None:
        """Count and log what has been added."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._log()
        self._metrics.flush()

    def _log(self) -> None:
        records, self._unlogged = self._unlogged, []
        self._metrics.count(records)
        for one in records:
            (log.debug if one.route in QUIET_ROUTES else log.info)(
                "request",
                method=one.method,
                route=one.route,
                model=one.model,
                status=one.status,
                rows=one.rows,
                ms=round(one.seconds * 1e3, 2),
                timestamp=datetime.fromtimestamp(one.ended, UTC).isoformat().replace("+00:00", "Z"),
                **one.fields,
            )

    async def wait_for_all(self) -> None:
        """Return when the other workers, too, have written what they have answered so far."""
        await asyncio.sleep(2 * WRITE_SECONDS)
