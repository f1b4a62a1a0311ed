"""Settings: everything that can be set about the server, as ``JFB_`` variables and as flags of ``python -m app``."""

import os
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, FieldSerializationInfo, SecretStr, field_serializer, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

BackendName = Literal["auto", "torch", "folded", "onnx", "compiled"]
Precision = Literal["auto", "float32", "mixed"]


class EngineConfig(BaseModel, frozen=True, use_attribute_docstrings=True, extra="ignore"):
    """The settings that an engine process needs; it receives them as JSON."""

    model_store: Path = Path("model_store")
    """Folder of the models, <name>/<version>/ in it."""
    device: str = "auto"
    """Where the models compute: auto (cuda if there is one, else cpu), cpu, cuda, cuda:1; separated by commas, an engine each."""
    slots: int | None = Field(default=None, ge=1)
    """Rows of one model that iterate together in one engine; measured at loading unless set."""
    backend: BackendName = "auto"
    """What computes the models; auto measures at loading which is fastest at each batch size."""
    precision: Precision = "auto"
    """With mixed, rows start in bfloat16 or TF32 and end in float32; auto uses that where it is measured to be faster."""
    deterministic: bool = False
    """With true, a row's response is the same to the last bit alone, in any company, and on repetition; slower."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each engine; PyTorch's choice for one engine, an equal share of the cores for several, unless set."""
    max_waiting_rows: int = Field(default=4096, ge=1)
    """Rows of one model that one client may have waiting for a slot of an engine, all together an eighth more; then 429."""
    poll_seconds: float | None = Field(default=None, gt=0)
    """Seconds between scans of the store for new versions; without it, only SIGHUP and load requests rescan."""
    load_seconds: float = Field(default=120.0, gt=0)
    """Seconds that loading a version may take; one that takes longer is refused."""
    session_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Memory for the warm starts of sessions, per version; the least recently used are dropped first."""
    session_seconds: float = Field(default=300.0, gt=0)
    """Seconds after which an unused session is forgotten."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """How the log is written; auto is console on a terminal and JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe events that are logged; info has one line per request, except for health checks and scrapes."""


class Settings(BaseSettings, EngineConfig):
    """The settings of a server: those of its engines, and its own."""

    model_config = SettingsConfigDict(env_prefix="JFB_")

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    http_workers: int = Field(default=1, ge=1)
    """HTTP worker processes; they share the port and the engines."""
    engines: int = Field(default=1, ge=1)
    """Engine processes per device. More than one is for CPUs with many cores; each engine gets its share of them."""
    default_model: str | None = None
    """The model of /predict; unless set, the served model that was published last."""
    max_rows_per_request: int = Field(default=1024, ge=1)
    """Rows that one request may hold; larger requests are answered 413."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Bytes that the body of one request may hold; larger bodies are answered 413."""
    body_timeout: float = Field(default=30.0, gt=0)
    """Seconds in which the headers of a request, and then its body, must arrive (else 408), and responses be read."""
    max_iterations_limit: int = Field(default=1000, ge=1)
    """The highest max_iterations that a request may set; it also bounds the models' own defaults."""
    drain_seconds: float = Field(default=1.0, ge=0)
    """Seconds after SIGTERM in which requests are still accepted, while /v2/health/ready already answers 503."""
    api_keys: SecretStr | None = None
    """API keys, separated by commas; every request must send one (Authorization: Bearer KEY). Without any, none is required."""
    api_keys_file: Path | None = None
    """File of API keys, one per line, read again on SIGHUP."""
    admin_keys: SecretStr | None = None
    """Keys that may also load and unload models; if there are only api_keys, no key may. Without any keys, everyone may."""
    admin_keys_file: Path | None = None
    """File of admin keys, one per line, read again on SIGHUP."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Serve /metrics on this port instead of the main one (0 takes a free one); /v2/health is served on both."""
    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    """Serve the Open Inference Protocol over gRPC too, on this port; needs the extra grpc."""
    cors_origins: str = ""
    """Origins, separated by commas, whose pages may send requests, such as https://example.org; * allows every page."""
    otlp_endpoint: str | None = None
    """OpenTelemetry collector to send traces to, such as http://localhost:4318; needs the extra otel."""

    @property
    def engine_configs(self) -> list[EngineConfig]:
        """One for each engine process: ``engines`` on each device."""
        devices = [device.strip() for device in self.device.split(",") for _ in range(self.engines)]
        threads = self.threads or (None if len(devices) == 1 else max(1, (os.cpu_count() or 1) // len(devices)))
        shared = self.model_dump(include=set(EngineConfig.model_fields))
        return [EngineConfig.model_validate({**shared, "device": device, "threads": threads}) for device in devices]

    @field_serializer("api_keys", "admin_keys", when_used="json")
    def _keys(self, keys: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        reveals = isinstance(info.context, dict) and info.context.get("reveal_keys")
        return None if keys is None else keys.get_secret_value() if reveals else str(keys)

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in filter(None, value.split(",")):
            if origin.strip() != "*" and not re.fullmatch(r"https?://[^/\s]+", origin.strip()):
                raise ValueError("must be origins such as https://example.org")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]", value):
            raise ValueError("must be a URL such as http://localhost:4318")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_rows_per_request > self.max_waiting_rows:
            raise ValueError(
                f"--max-rows-per-request must be at most --max-waiting-rows, {self.max_waiting_rows}, "
                f"or such a request could never be queued (got {self.max_rows_per_request})"
            )
        return self
