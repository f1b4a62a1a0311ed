"""JSON of the Open Inference Protocol (KServe v2): pydantic models, and for speed msgspec's ``InferRequest``."""

from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct, field
from pydantic import MISSING, Field

from app.schemas.native import Count, Model, PredictParameters

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
DATATYPE = Meta(description="Of every entry.", extra_json_schema={"enum": get_args(Datatype)})
DATA = Meta(description="Entries, nested or flat, unless they follow the JSON.", extra_json_schema={"type": "array", "items": {}})
Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Classes = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class InputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the entries of an input are."""

    binary_data_size: Annotated[Size | UnsetType, Meta(description="Bytes of this tensor after the JSON.")] = UNSET


class RequestInput(Struct):
    """A tensor, whose entries may follow the JSON as raw bytes."""

    name: Annotated[str, Meta(description="One of the model's inputs; see its metadata.")]
    shape: Annotated[list[Size], Meta(description="Its first side is the number of rows.")]
    datatype: Annotated[str, DATATYPE]
    parameters: Annotated[InputParameters, Meta(description="Only with raw bytes.")] = InputParameters()
    data: Annotated[Raw | UnsetType, DATA] = UNSET


class OutputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """How to send an output."""

    binary_data: Annotated[bool | UnsetType, Meta(description="Whether it follows the JSON as raw bytes.")] = UNSET
    classification: Annotated[Classes | UnsetType, Meta(description="Of logits: send that many classes, highest first.")] = UNSET


class RequestedOutput(Struct):
    """An output to send."""

    name: Annotated[str, Meta(description="One of the model's outputs; see its metadata.")]
    parameters: Annotated[OutputParameters, Meta(description="How to send it.")] = OutputParameters()


class RequestParameters(PredictParameters):
    """How the rows are solved, and the outputs sent."""

    timeout: Annotated[Size | UnsetType, Meta(description="Deadline in microseconds, as Triton has it.")] = UNSET
    binary_data_output: Annotated[bool, Meta(description="Whether all outputs follow the JSON as raw bytes.")] = False


class InferRequest(Struct):
    """Tensors to compute with."""

    inputs: Annotated[list[RequestInput], Meta(description="The rows, and parameters with an entry per row.")]
    outputs: Annotated[list[RequestedOutput] | UnsetType, Meta(description="All outputs if left out.")] = UNSET
    parameters: Annotated[RequestParameters, Meta(description="For all rows.")] = field(default_factory=RequestParameters)
    id: Annotated[str | UnsetType, Meta(description="Repeated in the response.")] = UNSET


RawInferRequest = defstruct("RawInferRequest", [(name, Raw | UnsetType, UNSET) for name in InferRequest.__struct_fields__])
"""An ``InferRequest`` whose values are still JSON."""


class TensorParameters(Model):
    """Where the entries of an output are."""

    binary_data_size: Count = Field(description="Bytes of this tensor after the JSON.")


class ResponseOutput(Model):
    """A tensor of a response."""

    name: str = Field(description="Name of the output.")
    datatype: Datatype = Field(description="Of every entry.")
    shape: list[int] = Field(description="Its first side is the number of rows.")
    parameters: TensorParameters | MISSING = Field(MISSING, description="Only with raw bytes.")
    data: list[Any] | MISSING = Field(MISSING, description="Entries, row by row; null is not a number.")


class InferResponse(Model):
    """The requested outputs, in their order, or all."""

    model_name: str = Field(description="Name of the model that answered.")
    model_version: str = Field(description="Its version.")
    outputs: list[ResponseOutput] = Field(description="Their entries are in the order of the rows.")
    id: str | MISSING = Field(MISSING, description="That of the request, if it had one.")


class ServerMetadata(Model):
    """What answers here."""

    name: str = Field(description="Always jfb.")
    version: str = Field(description="Version of the package.")
    extensions: list[str] = Field(description="Parts of the protocol that are optional, and offered here.")


class MetadataParameters(Model):
    """More about an input."""

    optional: bool = Field(description="Whether requests may leave it out.")


class TensorMetadata(Model):
    """An input of a model; a side of -1 may have any length."""

    name: str = Field(description="Name of the tensor.")
    datatype: Datatype = Field(description="Of every entry.")
    shape: list[int] = Field(description="Its first side is the number of rows.")
    parameters: MetadataParameters | MISSING = Field(MISSING, description="Only of optional inputs.")


class OutputMetadataParameters(Model):
    """More about an output."""

    labels: list[str] = Field(description="The classes, in the order of the logits.")


class OutputMetadata(Model):
    """An output that every request may name."""

    name: str = Field(description="Name of the tensor.")
    datatype: Datatype = Field(description="Of every entry.")
    shape: list[int] = Field(description="Its first side is the number of rows.")
    parameters: OutputMetadataParameters | MISSING = Field(MISSING, description="Only of logits.")


class ModelMetadata(Model):
    """What a model takes and returns."""

    name: str = Field(description="Name of the model, as in paths.")
    versions: list[str] = Field(description="All that are served, ascending.")
    platform: str = Field(description="Format of the model in the store.")
    inputs: list[TensorMetadata] = Field(description="Tensors of a request.")
    outputs: list[OutputMetadata] = Field(description="Tensors of a response.")


class ModelReady(Model):
    """The model can answer."""

    name: str = Field(description="Name of the model.")
    ready: bool = Field(description="Always true; a model that is not ready answers 404 or 503.")


class Duration(Model):
    """How often something was done, and how long it took altogether."""

    count: Count = Field(description="How often.")
    ns: Count = Field(description="Nanoseconds altogether.")


class InferenceStatistics(Model):
    """Requests and their time in the engine. What is done once per batch counts in full for each of its requests."""

    success: Duration = Field(description="Requests answered with results; the time is the sum of the next four.")
    queue: Duration = Field(description="Waiting for a slot.")
    compute_input: Duration = Field(description="Injection of the inputs.")
    compute_infer: Duration = Field(description="Iterating.")
    compute_output: Duration = Field(description="Readout of the logits.")
    fail: Duration = Field(description="Requests answered with an error, or whose client left; their time is not measured.")


class ModelStatistics(Model):
    """What a version has done, counted over all HTTP workers and engines."""

    name: str = Field(description="Name of the model.")
    version: str = Field(description="Number of the version.")
    inference_count: Count = Field(description="Rows answered.")
    execution_count: Count = Field(description="Iterations of the running batches, since each engine started.")
    inference_stats: InferenceStatistics = Field(description="Requests and their time.")
    batch_stats: list[Any] = Field([], description="Always empty: a batch changes between iterations.")


class Statistics(Model):
    """What the served versions have done."""

    model_stats: list[ModelStatistics] = Field(description="One entry per version.")


class Reshape(Model):
    """The shape of one row, where dims cannot say it."""

    shape: list[int] = Field(description="Empty: one value per row.")


class ConfigTensor(Model):
    """A tensor in a model's configuration, without the side of the batch."""

    name: str = Field(description="Name of the tensor.")
    data_type: str = Field(description="TYPE_ and the datatype.")
    dims: list[int] = Field(description="Shape of one row.")
    reshape: Reshape | MISSING = Field(MISSING, description="An empty shape: one value per row.")
    optional: Literal[True] | MISSING = Field(MISSING, description="Whether requests may leave it out.")


class VersionPolicy(Model):
    """All loaded versions are served."""

    all: dict[str, Any] = Field({}, description="Always empty.")


class InstanceGroup(Model):
    """What computes the model."""

    name: str = Field(description="Name of the model.")
    kind: Literal["KIND_AUTO"] = Field("KIND_AUTO", description="The server chooses the device.")
    count: Count = Field(description="Engine processes.")


class TransactionPolicy(Model):
    """One response per request."""

    decoupled: Literal[False] = Field(False, description="Always false.")


class ConfigParameter(Model):
    """A value of a model's configuration."""

    string_value: str = Field(description="The value as text.")


class ModelConfiguration(Model):
    """A version's configuration, in the form of Triton's."""

    name: str = Field(description="Name of the model.")
    platform: str = Field(description="Format of the model in the store.")
    version_policy: VersionPolicy = Field(VersionPolicy(), description="Which versions are served.")
    max_batch_size: Count = Field(description="Rows that one request may hold.")
    input: list[ConfigTensor] = Field(description="Tensors of a request.")
    output: list[ConfigTensor] = Field(description="Tensors of a response.")
    instance_group: list[InstanceGroup] = Field(description="Engine processes.")
    parameters: dict[str, ConfigParameter] = Field(description="The model's own defaults, and its labels as a JSON list.")
    model_transaction_policy: TransactionPolicy = Field(TransactionPolicy(), description="How many responses a request has.")


class IndexRequest(Model):
    """Which versions to list."""

    ready: bool = Field(False, description="Only those that are served.")


class IndexEntry(Model):
    """A version in the model store, or a model of which no version is served."""

    name: str = Field(description="Name of the model.")
    version: str | MISSING = Field(MISSING, description="Left out of a model that was unloaded.")
    state: Literal["READY", "UNAVAILABLE"] = Field(description="READY if it is served.")
    reason: str = Field(description="Why it is not ready.")


class ChangeParameters(Model, extra="forbid"):
    """Parameters that Triton's clients send; here no model depends on another."""

    unload_dependents: bool = Field(False, description="Has no effect.")


class ChangeRequest(Model):
    """More about a load or an unload."""

    parameters: ChangeParameters = Field(ChangeParameters(), description="Has no effect.")
