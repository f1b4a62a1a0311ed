"""JSON of the Open Inference Protocol (KServe v2): pydantic models, and for speed msgspec's ``InferRequest``."""

from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct, field
from pydantic import MISSING, Field

from app.schemas.native import Count, Model, PredictParameters

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
DATATYPE = Meta(extra_json_schema={"enum": get_args(Datatype)})
DATA = Meta(description="Entries, nested or flat, unless they follow the JSON.", extra_json_schema={"type": "array", "items": {}})
Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Classes = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class InputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    binary_data_size: Annotated[Size | UnsetType, Meta(description="Bytes of this tensor after the JSON.")] = UNSET


class RequestInput(Struct):
    """A tensor, whose entries may follow the JSON as raw bytes."""

    name: str
    shape: list[Size]
    datatype: Annotated[str, DATATYPE]
    parameters: InputParameters = InputParameters()
    data: Annotated[Raw | UnsetType, DATA] = UNSET


class OutputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    binary_data: Annotated[bool | UnsetType, Meta(description="Whether it follows the JSON as raw bytes.")] = UNSET
    classification: Annotated[Classes | UnsetType, Meta(description="Of logits: send that many classes, highest first.")] = UNSET


class RequestedOutput(Struct):
    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(PredictParameters):
    """How the rows are solved, and the outputs sent."""

    timeout: Annotated[Size | UnsetType, Meta(description="Deadline in microseconds, as Triton has it.")] = UNSET
    binary_data_output: Annotated[bool, Meta(description="Whether all outputs follow the JSON as raw bytes.")] = False


class InferRequest(Struct):
    """Tensors to compute with."""

    inputs: list[RequestInput]
    outputs: Annotated[list[RequestedOutput] | UnsetType, Meta(description="All outputs if left out.")] = UNSET
    parameters: RequestParameters = field(default_factory=RequestParameters)
    id: str | UnsetType = UNSET


RawInferRequest = defstruct("RawInferRequest", [(name, Raw | UnsetType, UNSET) for name in InferRequest.__struct_fields__])
"""An ``InferRequest`` whose values are still JSON."""


class TensorParameters(Model):
    binary_data_size: Count = Field(description="Bytes of this tensor after the JSON.")


class ResponseOutput(Model):
    """A tensor of a response."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: TensorParameters | MISSING = MISSING
    data: list[Any] | MISSING = Field(MISSING, description="Entries, row by row; null is not a number.")


class InferResponse(Model):
    """The requested outputs, in their order, or all."""

    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
    id: str | MISSING = MISSING


class ServerMetadata(Model):
    name: str
    version: str
    extensions: list[str]


class MetadataParameters(Model):
    optional: bool


class TensorMetadata(Model):
    """An input of a model; a side of -1 may have any length."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: MetadataParameters | MISSING = MISSING


class OutputMetadataParameters(Model):
    labels: list[str] = Field(description="The classes, in the order of the logits.")


class OutputMetadata(Model):
    """An output that every request may name."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: OutputMetadataParameters | MISSING = MISSING


class ModelMetadata(Model):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[OutputMetadata]


class ModelReady(Model):
    name: str
    ready: bool


class Duration(Model):
    """How often something was done, and how long it took altogether."""

    count: Count
    ns: Count


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

    name: str
    version: str
    inference_count: Count = Field(description="Rows answered.")
    execution_count: Count = Field(description="Iterations of the running batches, since each engine started.")
    inference_stats: InferenceStatistics
    batch_stats: list[Any] = Field([], description="Always empty: a batch changes between iterations.")


class Statistics(Model):
    model_stats: list[ModelStatistics]


class Reshape(Model):
    shape: list[int]


class ConfigTensor(Model):
    """A tensor in a model's configuration, without the side of the batch."""

    name: str
    data_type: str
    dims: list[int]
    reshape: Reshape | MISSING = Field(MISSING, description="An empty shape: one value per row.")
    optional: Literal[True] | MISSING = MISSING


class VersionPolicy(Model):
    """All loaded versions are served."""

    all: dict[str, Any] = Field({})


class InstanceGroup(Model):
    name: str
    kind: Literal["KIND_AUTO"] = "KIND_AUTO"
    count: Count = Field(description="Engine processes.")


class TransactionPolicy(Model):
    decoupled: Literal[False] = False


class ConfigParameter(Model):
    string_value: str


class ModelConfiguration(Model):
    """A version's configuration, in the form of Triton's."""

    name: str
    platform: str
    version_policy: VersionPolicy = VersionPolicy()
    max_batch_size: Count = Field(description="Rows that one request may hold.")
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    instance_group: list[InstanceGroup]
    parameters: dict[str, ConfigParameter] = Field(description="The model's own defaults, and its labels as a JSON list.")
    model_transaction_policy: TransactionPolicy = TransactionPolicy()


class IndexRequest(Model):
    """Which versions to list."""

    ready: bool = Field(False, description="Only those that are served.")


class IndexEntry(Model):
    """A version in the model store, or a model of which no version is served."""

    name: str
    version: str | MISSING = MISSING
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="Why it is not ready.")


class ChangeParameters(Model, extra="forbid"):
    """Parameters that Triton's clients send; here no model depends on another."""

    unload_dependents: bool = False


class ChangeRequest(Model):
    """More about a load or an unload."""

    parameters: ChangeParameters = ChangeParameters()
