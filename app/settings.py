"""Settings: everything that can be set about the server, as ``JFB_`` variables and as flags of ``python -m app``."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
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
    http_workers: int = Field(default=1, ge=1)
    """Processes that take requests, all of them for the one engine; more than one where one is busy all the time."""
    device: str = "auto"
    """Where the models compute, in PyTorch's words: cpu, cuda, cuda:1; auto is cuda where there is one; several with commas."""
    default_model: str | None = None
    """The model that /predict asks; needed only when the store holds several."""
    slots: int | None = Field(default=None, ge=1)
    """Rows of one model that iterate together on one device; as many as a measurement finds worthwhile unless set."""
    backend: Literal["auto", "torch", "folded", "onnx", "compiled"] = "auto"
    """What computes the models; auto measures at loading what is fastest at each batch size."""
    precision: Literal["auto", "float32", "mixed"] = "auto"
    """Whether rows begin in bfloat16 and end in float32: where that is measured to be faster, never, or always."""
    max_waiting_rows: int = Field(default=4096, ge=1)
    """Rows of one model that may wait for a slot; requests beyond are answered 429."""
    max_rows_per_request: int = Field(default=1024, ge=1)
    """Rows that one request may hold; larger requests are answered 413."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Bytes that the body of one request may hold; larger ones are answered 413."""
    body_timeout: float = Field(default=30.0, gt=0)
    """Seconds in which the head of a request, and then its body, must have arrived; slower ones are answered 408."""
    max_iterations_limit: int = Field(default=1000, ge=1)
    """The highest max_iterations that a request may ask for; it also bounds the models' own defaults."""
    batching: Literal["iteration", "lockstep"] = "iteration"
    """Whether rows join and leave between iterations, or a batch runs until its worst row has ended (for comparison)."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the engine; PyTorch's own choice unless set."""
    poll_seconds: float | None = Field(default=None, gt=0)
    """How often to look for new versions in the store; only when told to (SIGHUP, or a load request) unless set."""
    drain_seconds: float = Field(default=1.0, ge=0)
    """How long after SIGTERM requests are still taken, while /v2/health/ready answers 503 already."""
    session_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Memory for the warm starts of sessions, of each version; those not used for longest are forgotten first."""
    session_seconds: float = Field(default=300.0, gt=0)
    """How long a session that is not used is remembered."""
    api_keys: SecretStr | None = None
    """Keys, one of which every request must bear (Authorization: Bearer KEY); several with commas. Anyone may ask unless set."""
    api_keys_file: Path | None = None
    """File of such keys, one a line, read again on SIGHUP."""
    admin_keys: SecretStr | None = None
    """Keys that may load and unload models too; with api_keys alone nobody may. Anyone may unless either is set."""
    admin_keys_file: Path | None = None
    """File of such keys, one a line, read again on SIGHUP."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of /metrics, which the other port then has no more, and of /v2/health, which both have; 0 as for port."""
    cors_origins: str = ""
    """Origins whose pages may ask from a browser, such as https://example.org, with commas between them; * is every page."""
    otlp_endpoint: str | None = None
    """OpenTelemetry collector that traces are sent to, such as http://localhost:4318; needs the extra otel."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """How the log is written; auto is console on a terminal and JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are logged; info has one line a request, but for health checks and scrapes."""

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in filter(None, value.split(",")):
            if origin.strip() != "*" and not re.fullmatch(r"https?://[^/\s]+", origin.strip()):
                raise ValueError(f"expected origins such as https://example.org, got {origin.strip()!r}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_rows_per_request > self.max_waiting_rows:
            raise ValueError(
                "max_rows_per_request: expected at most max_waiting_rows "
                f"({self.max_waiting_rows}), or such a request could never be queued, got {self.max_rows_per_request}"
            )
        return self
