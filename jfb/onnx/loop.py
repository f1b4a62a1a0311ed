"""The whole inference as one ONNX graph: the maps, and a ``Loop`` around ``step``."""

from onnx import ModelProto

from jfb.config import ResidualNorm
from jfb.onnx.file import OPSET
from jfb.onnx.iteration import functions_of, inline, sides
from jfb.solvers import Mixing

# The loop of ``jfb.solve``, in ONNX's text format. ``row`` holds the indices of the rows that go on, so a row that has ended is
# not computed or changed again: its state, count and residual stay as they were at its last iteration. A residual of NaN is not
# above any tolerance, so its row ends. Picard iteration evaluates the next step at ``state`` itself; a solver with a memory fills
# the gaps of the text: what it starts with, carries, and where it evaluates next.
LOOP = """
<ir_version: {ir_version}, opset_import: ["": {opset}, "jfb": 1]>
adaptive (float[n,{inputs}] inputs, float[n] tolerance, int64[n] max_iterations)
      => (float[n,{logits}] logits, int64[n] iterations, float[n] residual, bool[n] converged)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    last = Constant <value_ints = [-1]> ()
    infinity = Constant <value = float {{inf}}> ()

    injection = jfb.inject (inputs)
    start = jfb.initial_state (injection)
    n = Size (tolerance)
    every_row = Range (zero, n, one)
    some = Less (zero, n)
    shape = Shape (tolerance)
    no_iterations = ConstantOfShape <value = int64[1] {{0}}> (shape)
    no_residual = ConstantOfShape <value = float[1] {{0.0}}> (shape)
{solver[start]}
    no_row, fixed_point, iterations, residual{solver[ends]} =
        Loop ("", some, every_row, start, no_iterations, no_residual{solver[starts]}) <body =
        iterate (int64 before, bool go, int64[active] row, float[n,{state}] state, int64[n] count,
                 float[n] movement{solver[given]})
             => (bool next_go, int64[staying] next_row, float[n,{state}] next_state, int64[n] next_count,
                 float[n] next_movement{solver[kept]})
        {{
            u = Gather ({solver[evaluated]}, row)
            q = Gather (injection, row)
            u_next = jfb.step (u, q)
            moved, length = jfb.residual (u, u_next)
            k = Add (before, one)

            column = Unsqueeze (row, last)
            next_state = ScatterND (state, column, u_next)
            rows = Shape (row)
            ks = Expand (k, rows)
            next_count = ScatterElements (count, row, ks)
            next_movement = ScatterElements (movement, row, moved)
{solver[propose]}
            epsilon = Gather (tolerance, row)
            cap = Gather (max_iterations, row)
            above = Greater (moved, epsilon)
            finite = Less (moved, infinity)
            moving = And (above, finite)
            allowed = Less (k, cap)
            stays = And (moving, allowed)
            next_row = Compress <axis = 0> (row, stays)
            left = Size (next_row)
            next_go = Less (zero, left)
        }}
    >
    logits = jfb.readout (fixed_point)
    converged = LessOrEqual (residual, tolerance)
}}
"""


PICARD = dict.fromkeys(("start", "starts", "ends", "given", "kept", "propose"), "") | {"evaluated": "state"}

# ``state`` holds T of the state that a row was evaluated at last, which is what ``jfb.solvers.Mixing`` calls ``accepted``.
MIXING = {
    "start": """    unlimited = ConstantOfShape <value = float[1] {{inf}}> (shape)
""",
    "starts": ", start, start, unlimited",
    "ends": ", no_point, no_previous, no_limit",
    "given": ", float[n,{state}] point, float[n,{state}] previous, float[n] limit",
    "kept": ", float[n,{state}] next_point, float[n,{state}] next_previous, float[n] next_limit",
    "evaluated": "point",
    "propose": """
            before_u = Gather (previous, row)
            accepted = Gather (state, row)
            allowed_movement = Gather (limit, row)
            proposal, next_allowed = jfb.mix (u, u_next, length, before_u, accepted, allowed_movement)
            next_point = ScatterND (point, column, proposal)
            next_previous = ScatterND (previous, column, u)
            next_limit = ScatterElements (limit, row, next_allowed)
""",
}


def assemble(maps: dict[str, ModelProto], residual_norm: ResidualNorm, mixing: Mixing | None = None) -> ModelProto:
    """Build the graph that computes for every row what ``jfb.predict`` computes with the same solver.

    Inputs: ``inputs`` FLOAT ``[n, *input_shape]``, ``tolerance`` FLOAT ``[n]``, ``max_iterations`` INT64 ``[n]``.
    Outputs: ``logits`` FLOAT ``[n, classes]``, ``iterations`` INT64 ``[n]``, ``residual`` FLOAT ``[n]``, ``converged`` BOOL
    ``[n]``.
    A graph cannot reject its inputs: with a tolerance of NaN or a cap below 1, a row ends at its first iteration.

    Args:
        maps: the result of ``jfb.onnx.maps.trace``.
        residual_norm: the norm that tolerances are in.
        mixing: the solver; Picard iteration without.
    """
    state = sides(maps["step"], "state")
    text = LOOP.format(
        ir_version=maps["step"].ir_version,
        opset=OPSET,
        inputs=sides(maps["inject"], "inputs"),
        state=state,
        solver={name: text.format(state=state) for name, text in (MIXING if mixing else PICARD).items()},
        logits=sides(maps["readout"], "logits"),
    )
    return inline(text, functions_of(maps, residual_norm, mixing))
