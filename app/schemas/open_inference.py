"""JSON of the Open Inference Protocol (KServe v2), and of Triton's extensions to it that this server supports.

The infer routes decode and encode without these models (``inference/open_inference.py``), for speed; a test holds both together.
All other routes use them.
"""

from typing import Annotated, Any, Literal

from pydantic import MISSING, ConfigDict, Field

from app.schemas.native import Model

Datatype = Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]


class TensorParameters(Model):
    """Parameters of a tensor whose entries may follow the JSON as raw bytes."""

    model_config = ConfigDict(extra="forbid")

    binary_data_size: Annotated[int, Field(ge=0)] | MISSING = MISSING
    """Bytes of this tensor after the JSON."""


class RequestInput(Model):
    """A tensor: ``data`` holds its entries, nested or flat, unless they follow the JSON."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: Datatype
    parameters: TensorParameters = TensorParameters()
    data: list[Any] | MISSING = MISSING


class OutputParameters(Model):
    """How one output is sent."""

    model_config = ConfigDict(extra="forbid")

    binary_data: bool | MISSING = MISSING
    """Whether it follows the JSON as raw bytes."""


class RequestedOutput(Model):
    """One of the outputs to send."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Model):
    """How the rows are solved, and the outputs sent."""

    model_config = ConfigDict(extra="forbid")

    tolerance: float | MISSING = MISSING
    max_iterations: int | MISSING = MISSING
    deadline_ms: float | MISSING = MISSING
    solver: str | MISSING = MISSING
    """One of the model's solvers."""
    stop: str | MISSING = MISSING
    """tolerance or label."""
    session: str | MISSING = MISSING
    """Start where the last rows of this session ended."""
    timeout: int | MISSING = MISSING
    """Deadline in microseconds, as Triton has it."""
    binary_data_output: bool = False
    """Whether all outputs follow the JSON as raw bytes."""


class InferRequest(Model):
    """Tensors to compute with."""

    inputs: list[RequestInput]
    outputs: list[RequestedOutput] | MISSING = MISSING
    """All outputs if left out."""
    parameters: RequestParameters = RequestParameters()
    id: str | MISSING = MISSING


class ResponseOutput(Model):
    """A tensor of a response."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: TensorParameters | MISSING = MISSING
    data: list[Any] | MISSING = MISSING
    """Entries, row by row; null is not a number."""


class InferResponse(Model):
    """The requested outputs, in their order, or all."""

    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
    id: str | MISSING = MISSING


class ServerMetadata(Model):
    """Server metadata."""

    name: str
    version: str
    extensions: list[str]


class InputParameters(Model):
    """More about an input."""

    optional: bool


class TensorMetadata(Model):
    """An input or output of a model; a side of -1 may have any length."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: InputParameters | MISSING = MISSING


class ModelMetadata(Model):
    """Model metadata."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Model):
    """Model readiness."""

    name: str
    ready: bool


class IndexRequest(Model):
    """Which versions to list."""

    ready: bool = False
    """Only those that are served."""


class IndexEntry(Model):
    """A version in the model store, or a model of which no version is served."""

    name: str
    version: str | MISSING = MISSING
    state: Literal["READY", "UNAVAILABLE"]
    reason: str
    """Why it is not ready."""


class ChangeParameters(Model):
    """Parameters that Triton's clients send; here no model depends on another."""

    model_config = ConfigDict(extra="forbid")

    unload_dependents: bool = False


class ChangeRequest(Model):
    """More about a load or an unload."""

    parameters: ChangeParameters = ChangeParameters()
