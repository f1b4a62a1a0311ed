"""The JSON objects of the Open Inference Protocol (KServe v2) and of Triton's extensions to it that this server speaks."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Datatype = Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
Side = Annotated[int, Meta(ge=0)]


class BinaryData(Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of a tensor that may lie behind the JSON."""

    binary_data_size: Annotated[int, Meta(ge=0, description="of this tensor, in bytes behind the JSON")] | UnsetType = UNSET


class RequestInput(Struct, frozen=True):
    """A tensor: ``data`` holds its entries, nested or flat, unless they lie behind the JSON."""

    name: str
    shape: list[Side]
    datatype: Datatype
    parameters: BinaryData = BinaryData()
    data: Annotated[Raw, Meta(description="entries")] | UnsetType = UNSET


class OutputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """How one output shall be sent."""

    binary_data: bool | UnsetType = UNSET


class RequestedOutput(Struct, frozen=True):
    """One of the outputs that shall be sent."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """How the rows shall be solved, and the outputs be sent."""

    tolerance: float | UnsetType = UNSET
    max_iterations: int | UnsetType = UNSET
    deadline_ms: float | UnsetType = UNSET
    solver: Annotated[str, Meta(description="one of those that the model has")] | UnsetType = UNSET
    stop: Annotated[str, Meta(description="tolerance or label")] | UnsetType = UNSET
    session: Annotated[str, Meta(description="whose rows these are, for a warm start")] | UnsetType = UNSET
    timeout: Annotated[int, Meta(description="deadline in microseconds, as Triton has it")] | UnsetType = UNSET
    binary_data_output: bool = False


class InferRequest(Struct, frozen=True):
    """What is to be computed."""

    inputs: list[RequestInput]
    outputs: list[RequestedOutput] | UnsetType = UNSET
    parameters: RequestParameters = RequestParameters()
    id: str | UnsetType = UNSET


class Output(Struct, frozen=True):
    """A tensor of an answer."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: BinaryData | UnsetType = UNSET
    data: Annotated[list[Any], Meta(description="entries, row by row; null is not a number")] | UnsetType = UNSET


class InferAnswer(Struct, frozen=True):
    """The outputs that were asked for, in that order, or all."""

    model_name: str
    model_version: str
    outputs: list[Output]
    id: str | UnsetType = UNSET


class ServerMetadata(Struct, frozen=True):
    """What speaks here."""

    name: str
    version: str
    extensions: list[str]


class TensorParameters(Struct, frozen=True):
    """More about an input."""

    optional: bool


class TensorMetadata(Struct, frozen=True):
    """A tensor that a model takes or gives; a side of -1 may be of any length."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: TensorParameters | UnsetType = UNSET


class ModelMetadata(Struct, frozen=True):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Struct, frozen=True):
    """A model can be asked."""

    name: str
    ready: bool


class IndexRequest(Struct, frozen=True):
    """Which versions are to be listed."""

    ready: Annotated[bool, Meta(description="only those that can be asked")] = False


class IndexEntry(Struct, frozen=True, kw_only=True):
    """A version in the model store, or a model of which no version is served."""

    name: str
    version: str | UnsetType = UNSET
    state: Literal["READY", "UNAVAILABLE"]
    reason: Annotated[str, Meta(description="why it is not ready")]


class ChangeParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Triton's clients send it; here no model depends on another."""

    unload_dependents: bool = False


class ChangeRequest(Struct, frozen=True):
    """More about a load or an unload."""

    parameters: ChangeParameters = ChangeParameters()
