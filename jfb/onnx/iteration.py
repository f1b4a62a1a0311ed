"""One iteration as an ONNX graph: ``step``, the residual, and what the solver makes of them."""

from collections.abc import Mapping

import onnx
import onnx.inliner
import onnx.parser
import onnx.version_converter
from onnx import FunctionProto, ModelProto, OperatorSetIdProto, TensorProto

from jfb.config import ResidualNorm
from jfb.onnx.file import OPSET, OnnxFileError, check, shape
from jfb.onnx.maps import MAPS
from jfb.solvers import Mixing
from jfb.solvers.mixing import SLACK

DOMAIN = "jfb"

# What ``jfb.residual`` computes, and the movement's L2 norm, its length, which is mostly a step on the way. The maximum of ONNX
# Runtime ignores NaN, its sum does not, so where a norm is a maximum the sum says whether a row has diverged.
RESIDUALS = {
    ResidualNorm.ABSOLUTE: """
        length = ReduceL2 <keepdims = 0> (movement, entries)
        residual = Identity (length)""",
    ResidualNorm.RELATIVE: """
        length = ReduceL2 <keepdims = 0> (movement, entries)
        size = ReduceL2 <keepdims = 0> (next_state, entries)
        divisor = Max (size, tiny)
        ratio = Div (length, divisor)
        bounded = Min (ratio, largest)
        finite = Less (size, infinity)
        residual = Where (finite, bounded, nan)""",
    ResidualNorm.CHANNEL_MAX: """
        squares = ReduceSumSquare (movement, channels)
        largest_square = ReduceMax <keepdims = 0> (squares, entries)
        total = ReduceSum <keepdims = 0> (squares, entries)
        length = Sqrt (total)
        diverged = IsNaN (total)
        norm = Sqrt (largest_square)
        residual = Where (diverged, nan, norm)""",
    ResidualNorm.MAX: """
        length = ReduceL2 <keepdims = 0> (movement, entries)
        sizes = Abs (movement)
        norm = ReduceMax <keepdims = 0> (sizes, entries)
        total = ReduceSum <keepdims = 0> (sizes, entries)
        diverged = IsNaN (total)
        residual = Where (diverged, nan, norm)""",
}
RESIDUAL = """
<domain: "{domain}", opset_import: ["": {opset}]>
residual (state, next_state) => (residual, length)
{{
    entries = Constant <value_ints = [{entries}]> ()
    channels = Constant <value_ints = [1]> ()
    tiny = Constant <value = float {{1.17549435e-38}}> ()
    largest = Constant <value = float {{3.40282347e38}}> ()
    infinity = Constant <value = float {{inf}}> ()
    nan = Constant <value = float {{nan}}> ()
    movement = Sub (next_state, state)
    {residual}
}}
"""

# What ``jfb.solvers.Mixing.propose`` computes. To select rows costs as much as to mix them, and mostly all follow the proposal.
MIX = """
<domain: "{domain}", opset_import: ["": {opset}]>
mix (state, next_state, length, previous, accepted, allowed) => (proposal, next_allowed)
{{
    entries = Constant <value_ints = [{entries}]> ()
    zero = Constant <value = float {{0}}> ()
    rate = Constant <value = float {{{rate!r}}}> ()
    slack = Constant <value = float {{{slack!r}}}> ()
    movement = Sub (next_state, state)
    within = LessOrEqual (length, allowed)

    mixed_movement = {product} (movement, matrix)
    last_movement = Sub (state, previous)
    push = Mul (last_movement, momentum)
    pushed = Add (state, push)
    mixed = Add (pushed, mixed_movement)

    {all_within}
    proposal = If (all_within) <
        then_branch = followed () => (float[n,{state}] all_mixed) {{ all_mixed = Identity (mixed) }},
        else_branch = selected () => (float[n,{state}] some_mixed) {{
            outside = Not (within)
            new = Greater (allowed, zero)
            rejected = And (outside, new)
            these = Unsqueeze (within, entries)
            those = Unsqueeze (rejected, entries)
            plain = Where (those, accepted, next_state)
            some_mixed = Where (these, mixed, plain)
        }}
    >
    slower = Mul (rate, allowed)
    longer = Mul (slack, length)
    smaller = Min (slower, longer)
    next_allowed = Where (within, smaller, zero)
}}
"""

ALL_WITHIN = f"""numbers = Cast <to = {TensorProto.INT32}> (within)
    fewest = ReduceMin <keepdims = 0> (numbers)
    all_within = Cast <to = {TensorProto.BOOL}> (fewest)"""

ITERATION = """
<ir_version: {ir_version}, opset_import: ["": {opset}, "{domain}": 1]>
iterate (float[n,{state}] point, float[n,{injection}] injection{inputs})
     => (float[n,{state}] next_state, float[n] residual{outputs})
{{
    next_state = {domain}.step (point, injection)
    residual, length = {domain}.residual (point, next_state)
    {rest}
}}
"""


def iteration(
    step: ModelProto,
    residual_norm: ResidualNorm,
    *,
    mixing: Mixing | None = None,
    readout: ModelProto | None = None,
    movement_norm: ResidualNorm | None = None,
) -> ModelProto:
    """Build the graph of one iteration of Picard's solver, or of learned mixing.

    Inputs: ``point`` and ``injection``, FLOAT ``[n, ...]``; with mixing also its memory: ``previous``, ``accepted`` and
    ``allowed``. Outputs: ``next_state``, ``residual`` ``[n]``; with mixing ``proposal`` and ``next_allowed``: where to evaluate
    next, and what is allowed there (``accepted`` and ``previous`` are ``next_state`` and ``point`` then); with a readout
    ``logits`` ``[n, classes]``; with a second norm ``movement`` ``[n]``.

    Args:
        step: as in ``jfb.onnx.maps.MAPS``.
        residual_norm: of ``residual``.
        mixing: the solver; Picard iteration without.
        readout: the map, as in ``MAPS``, if logits are wanted.
        movement_norm: of ``movement``, if that is wanted.
    """
    state = sides(step, "next_state")
    maps = {"step": step} if readout is None else {"step": step, "readout": readout}
    functions = functions_of(maps, residual_norm, mixing)
    inputs, outputs, rest = "", "", []
    if mixing is not None:
        inputs = f", float[n,{state}] previous, float[n,{state}] accepted, float[n] allowed"
        outputs += f", float[n,{state}] proposal, float[n] next_allowed"
        rest.append(f"proposal, next_allowed = {DOMAIN}.mix (point, next_state, length, previous, accepted, allowed)")
    if readout is not None:
        outputs += f", float[n,{sides(readout, 'logits')}] logits"
        rest.append(f"logits = {DOMAIN}.readout (next_state)")
    if movement_norm is not None:
        functions.append(residual_function(movement_norm, state, name="movement"))
        outputs += ", float[n] movement"
        rest.append(f"movement, _ = {DOMAIN}.movement (point, next_state)")
    text = ITERATION.format(
        ir_version=step.ir_version,
        opset=OPSET,
        domain=DOMAIN,
        state=state,
        injection=sides(step, "injection"),
        inputs=inputs,
        outputs=outputs,
        rest="\n    ".join(rest),
    )
    return inline(text, functions)


def functions_of(
    maps: Mapping[str, ModelProto], residual_norm: ResidualNorm, mixing: Mixing | None, *, one_row: bool = False
) -> list[FunctionProto]:
    """What graphs call: the given ones of ``MAPS``, ``residual``, and with mixing ``mix``.

    Args:
        one_row: whether ``mix`` is only called with one row.
    """
    state = sides(maps["step"], "next_state")
    functions = [*(as_function(name, graph) for name, graph in maps.items()), residual_function(residual_norm, state)]
    return functions if mixing is None else [*functions, mix_function(mixing, state, one_row=one_row)]


def residual_function(norm: ResidualNorm, state: str, name: str = "residual") -> FunctionProto:
    """``jfb.residual`` as a function ``(state, next_state) => (residual, length)``; the latter is ``‖next_state − state‖₂``.

    Args:
        state: the shape of a row, as ``sides`` returns it.
    """
    text = RESIDUAL.format(domain=DOMAIN, opset=OPSET, entries=_entries(state), residual=RESIDUALS[norm])
    function: FunctionProto = onnx.parser.parse_function(text)
    function.name = name
    return function


def mix_function(mixing: Mixing, state: str, *, one_row: bool = False) -> FunctionProto:
    """``Mixing.propose`` as a function ``(state, next_state, length, previous, accepted, allowed) => (proposal, next_allowed)``.

    Args:
        state: the shape of a row, as ``sides`` returns it.
        one_row: whether it is only called with one row.
    """
    all_within = "all_within = Identity (within)" if one_row else ALL_WITHIN
    channels, positions = len(mixing.momentum), state.count(",")
    # A matrix product at every position is a convolution of size 1; for vectors it is one product.
    product = f"Conv <kernel_shape = [{','.join(['1'] * positions)}]>" if positions else "MatMul"
    text = MIX.format(
        domain=DOMAIN,
        opset=OPSET,
        entries=_entries(state),
        state=state,
        rate=mixing.rate,
        slack=SLACK,
        product=product,
        all_within=all_within,
    )
    function: FunctionProto = onnx.parser.parse_function(text)
    matrix = mixing.matrix.reshape(channels, channels, *(1,) * positions) if positions else mixing.matrix.T
    weights = {"matrix": matrix, "momentum": mixing.momentum.reshape(1, channels, *(1,) * positions)}
    for name, tensor in weights.items():
        value = onnx.numpy_helper.from_array(tensor.float().contiguous().numpy(), name)
        function.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=value))
    return function


def as_function(name: str, model: ModelProto) -> FunctionProto:
    """Make one of ``MAPS`` a function to call, with its arguments in that order, which need not be the file's.

    Functions have no initialisers, so weights become constants.

    Raises:
        OnnxFileError: for operators that cannot be expressed in the version of all other graphs.
    """
    if any(imported.version != OPSET for imported in model.opset_import):
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # its C++ code raises undocumented types
            raise OnnxFileError(f"{name}: must be convertible to opset {OPSET}: {error}") from error
    graph = model.graph
    weights = [onnx.helper.make_node("Constant", [], [weight.name], value=weight) for weight in graph.initializer]
    return onnx.helper.make_function(
        DOMAIN,
        name,
        MAPS[name].inputs,
        [MAPS[name].output],
        [*weights, *graph.node],
        list(model.opset_import),
    )


def inline(text: str, functions: list[FunctionProto]) -> ModelProto:
    """Parse a model in ONNX's text format, put functions in place of their calls, and check it."""
    model: ModelProto = onnx.parser.parse_model(text)
    model.functions.extend(functions)
    model = onnx.inliner.inline_local_functions(model)
    del model.opset_import[:]  # the functions are inlined, so their domain is not needed
    model.opset_import.append(OperatorSetIdProto(domain="", version=OPSET))
    check(model)
    return model


def sides(model: ModelProto, name: str) -> str:
    """The shape of a row of an input or output, as in ONNX's text format: ``4,6,6``."""
    (found,) = (shape(value) for value in (*model.graph.input, *model.graph.output) if value.name == name)
    assert found is not None
    return ",".join(map(str, found[1:]))


def _entries(state: str) -> str:
    """The dimensions of states except the first, which is the row."""
    return ",".join(map(str, range(1, state.count(",") + 2)))
