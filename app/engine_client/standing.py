"""Standing: what the keeper of an engine tells the HTTP processes that ask the same engine."""

import msgspec


class Standing(msgspec.Struct, frozen=True):
    """How the engine is, as ``EngineSupervisor`` sees it."""

    address: str | None = None
    """Where this engine listens, or soon will; None while there is none. Each engine has another."""
    ready: bool = False
    restarts: int = 0
    ends_in_a_row: int = 0
    trouble: str | None = None
