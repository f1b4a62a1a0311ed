"""What can go wrong with a well-formed request."""


class EngineError(Exception):
    """A request that cannot be answered."""


class EngineUnavailable(EngineError):  # noqa: N818 - named for the condition
    """No engine is ready, or it exited before it answered; it is being restarted."""


class QueueFull(EngineError):  # noqa: N818
    """The queue has no room for the rows; nothing was computed. ``retry_after`` is in seconds."""

    def __init__(self, waiting_rows: int, max_waiting_rows: int, retry_after: float) -> None:
        super().__init__(f"{waiting_rows} of at most {max_waiting_rows} rows are waiting; retry in {retry_after:.1f} s")
        self.waiting_rows = waiting_rows
        self.max_waiting_rows = max_waiting_rows
        self.retry_after = retry_after


class NotServed(EngineError):  # noqa: N818
    """The engine does not serve that version, or that load of it, any more; look it up in the catalogue again."""


class ModelNotFound(EngineError):  # noqa: N818
    """No such model or version; the message lists those that exist."""


class NoDefaultModel(EngineError):  # noqa: N818
    """The request names no model, and there is no default model."""


class LoadFailed(EngineError):  # noqa: N818
    """A model, or some version of it, could not be loaded or unloaded; what was served of it before still is."""


class RequestFailed(EngineError):  # noqa: N818
    """These rows cannot be computed; other requests are not affected."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
