"""Settings: everything that can be set about the server, as ``JFB_`` variables and as flags of ``python -m app``."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Serve the implicit networks of a model store over HTTP. Every flag is also an environment variable: --port is JFB_PORT."""

    model_config = SettingsConfigDict(
        env_prefix="JFB_",
        cli_prog_name="python -m app",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    model_store: Path = Path("model_store")
    """Folder of the models, <name>/<version>/ in it."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    device: str = "auto"
    """Where the models compute, in PyTorch's words: cpu, cuda, cuda:1; auto is cuda where there is one."""
    default_model: str | None = None
    """The model that /predict asks; needed only when the store holds several."""
    slots: int = Field(default=64, ge=1)
    """Rows of one model that iterate together."""
    max_waiting_rows: int = Field(default=4096, ge=1)
    """Rows of one model that may wait for a slot; requests beyond are answered 429."""
    max_rows_per_request: int = Field(default=1024, ge=1)
    """Rows that one request may hold; larger requests are answered 413."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Bytes that the body of one request may hold; larger ones are answered 413."""
    body_timeout: float = Field(default=30.0, gt=0)
    """Seconds in which the body of a request must have arrived; slower ones are answered 408."""
    max_iterations_limit: int = Field(default=1000, ge=1)
    """The highest max_iterations that a request may ask for; it also bounds the models' own defaults."""
    batching: Literal["iteration", "lockstep"] = "iteration"
    """Whether rows join and leave between iterations, or a batch runs until its worst row has ended (for comparison)."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the engine; PyTorch's own choice unless set."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are logged; info has one line a request."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_rows_per_request > self.max_waiting_rows:
            raise ValueError(
                "max_rows_per_request: expected at most max_waiting_rows "
                f"({self.max_waiting_rows}), or such a request could never be queued, got {self.max_rows_per_request}"
            )
        return self
