"""What can go wrong with a request that was well-formed."""


class EngineError(Exception):
    """A request that has no answer."""


class QueueFull(EngineError):  # noqa: N818 - it is a condition, not a mistake
    """The engine has as many rows waiting as it accepts; nothing was computed.

    Args:
        waiting_rows: how many wait now.
        max_waiting_rows: how many may wait.
        retry_after: seconds after which the queue should have room.
    """

    def __init__(self, waiting_rows: int, max_waiting_rows: int, retry_after: float) -> None:
        super().__init__(f"{waiting_rows} rows wait already, and at most {max_waiting_rows} may; retry in {retry_after:.1f} s")
        self.waiting_rows = waiting_rows
        self.max_waiting_rows = max_waiting_rows
        self.retry_after = retry_after


class EngineDied(EngineError):  # noqa: N818
    """The engine process is not there: it died while it had the request, or it is not up yet."""


class NotServed(EngineError):  # noqa: N818
    """The engine does not serve that version any more, or has loaded it anew; ask again with what it serves now."""


class LoadFailed(EngineError):  # noqa: N818
    """A model was not loaded, or not all of its versions; what was served of it before still is.

    Args:
        reasons: one a version, or one for the model.
    """

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class RequestFailed(EngineError):  # noqa: N818
    """This request could not be computed; others are not affected.

    Args:
        reason: what went wrong, for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
