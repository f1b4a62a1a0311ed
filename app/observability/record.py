"""RequestRecord: what is known of a request, for the log, the metrics and the trace; nothing else of its content is kept."""

from dataclasses import dataclass, field

from app.engine_client.messages import Result
from app.observability.tracing import TraceStep


@dataclass(slots=True)
class RequestRecord:
    """A request, first as it has arrived, then as it has been answered."""

    fields: dict[str, str]
    """Of each of its log lines: its id, and that of its trace."""
    method: str
    traced: bool = False
    """Whether ``steps`` are wanted."""
    model: str = ""
    version: str = ""
    rows: int | None = None
    result: Result | None = None
    steps: list[TraceStep] = field(default_factory=list)
    route: str = "unknown"
    """Its path; unknown ones share one, or clients could make up any number of labels."""
    status: int | None = None
    seconds: float = 0.0
    ended: float = 0.0
    """In seconds since the epoch."""
