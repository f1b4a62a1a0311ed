"""OneRow: the whole life of a row, from its input to its logits, as one call into ONNX Runtime."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from jfb.config import ResidualNorm
from jfb.onnx.file import OPSET
from jfb.onnx.iteration import functions_of, inline, sides
from jfb.onnx.network import new_session
from jfb.solvers import Mixing

# The loop of ``jfb.solve`` for a batch of one, which needs no bookkeeping of rows. Picard iteration evaluates the next step at
# the state itself; a solver with a memory fills the gaps.
ONE_ROW = """
<ir_version: {ir_version}, opset_import: ["": {opset}, "jfb": 1]>
one_row (float[1,{inputs}] inputs, float[1] tolerance, int64 max_iterations)
     => (float[1,{logits}] logits, int64 iterations, float[1] residual, float[1,{injection}] injection,
         float[1,{state}] {state_name}{outputs})
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    true = Constant <value = bool[1] {{1}}> ()
    infinity = Constant <value = float {{inf}}> ()
    unlimited = Constant <value = float[1] {{inf}}> ()

    injection = jfb.inject (inputs)
    {start}
    iterations, residual, {state_name}{carried} =
        Loop (max_iterations, true, zero, unlimited, start{starts}) <body =
        iterate (int64 before, bool[1] go, int64 count, float[1] last_residual, float[1,{state}] state{given})
             => (bool[1] next_go, int64 next_count, float[1] moved, float[1,{state}] u_next{kept})
        {{
            u_next = jfb.step ({evaluated}, injection)
            moved, length = jfb.residual ({evaluated}, u_next)
            {propose}
            next_count = Add (count, one)
            above = Greater (moved, tolerance)
            finite = Less (moved, infinity)
            next_go = And (above, finite)
        }}
    >
    logits = jfb.readout ({state_name})
}}
"""
LEARNED_START = "start = jfb.initial_state (injection)"
ZEROS = """shape = Shape (injection)
    start = ConstantOfShape <value = float[1] {0.0}> (shape)"""

PICARD = dict.fromkeys(("outputs", "carried", "starts", "given", "kept", "propose"), "") | {
    "state_name": "point",
    "evaluated": "state",
}
# ``state`` holds T of the state before, which is what ``jfb.solvers.Mixing`` calls ``accepted``.
MIXING = {
    "state_name": "accepted",
    "outputs": ", float[1,{state}] point, float[1,{state}] previous, float[1] allowed",
    "carried": ", point, previous, allowed",
    "starts": ", start, start, unlimited",
    "given": ", float[1,{state}] u, float[1,{state}] u_before, float[1] limit",
    "kept": ", float[1,{state}] proposal, float[1,{state}] u, float[1] next_limit",
    "evaluated": "u",
    "propose": "proposal, next_limit = jfb.mix (u, u_next, length, u_before, state, limit)",
}


class Lived(NamedTuple):
    """What became of a row."""

    logits: NDArray[np.float32]
    """``[1, classes]``: of the last state, whether the row has ended or not."""
    iterations: int
    residual: float
    """Of the last iteration."""
    converged: bool
    rest: dict[str, NDArray[np.float32]]
    """What a row that has not ended goes on with: ``injection``, ``point``, and what the solver remembers, each ``[1, ...]``."""


class OneRow:
    """Injects one row, iterates it until it ends, and reads it out, with Picard's solver or with learned mixing.

    Args:
        maps: the graphs of ``jfb.onnx.maps.MAPS`` by name. Without ``initial_state`` the iteration starts at zeros shaped like
            the injection.
        residual_norm: the norm that tolerances are in.
        mixing: the solver; Picard iteration without.
    """

    def __init__(self, maps: Mapping[str, ModelProto], residual_norm: ResidualNorm, mixing: Mixing | None = None) -> None:
        self._session = new_session(one_row(maps, residual_norm, mixing))
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._rest = self._outputs[3:]

    def __call__(self, inputs: NDArray[np.float32], tolerance: float, max_iterations: int) -> Lived:
        """Compute what ``jfb.predict`` computes.

        Args:
            inputs: raw, ``[1, *input_shape]``.
            tolerance, max_iterations: as in ``jfb.solve``.
        """
        epsilon = np.array([tolerance], np.float32)
        feed = {"inputs": inputs, "tolerance": epsilon, "max_iterations": np.array(max_iterations)}
        logits, iterations, residual, *rest = self._session.run(self._outputs, feed)
        converged = residual.item() <= epsilon.item()
        return Lived(logits, iterations.item(), residual.item(), converged, dict(zip(self._rest, rest, strict=True)))


def one_row(maps: Mapping[str, ModelProto], residual_norm: ResidualNorm, mixing: Mixing | None = None) -> ModelProto:
    """Build the graph; see ``OneRow``.

    Inputs: ``inputs``, ``tolerance`` ``[1]`` and ``max_iterations``. Outputs: ``logits``, ``iterations``, ``residual`` ``[1]``,
    ``injection``, ``point``; with mixing also its memory: ``previous``, ``accepted`` and ``allowed``.
    """
    state = sides(maps["step"], "next_state")
    gaps = {name: text.format(state=state) for name, text in (MIXING if mixing else PICARD).items()}
    text = ONE_ROW.format(
        ir_version=maps["step"].ir_version,
        opset=OPSET,
        inputs=sides(maps["inject"], "inputs"),
        injection=sides(maps["inject"], "injection"),
        state=state,
        logits=sides(maps["readout"], "logits"),
        start=LEARNED_START if "initial_state" in maps else ZEROS,
        **gaps,
    )
    return inline(text, functions_of(maps, residual_norm, mixing, one_row=True))
