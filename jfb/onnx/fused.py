"""FusedIteration: one iteration as one call into ONNX Runtime, without copies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime import InferenceSession
from torch import Tensor

from jfb.onnx.network import new_session

# The names of what an iteration reads and then of what it writes; and for each name, in whose buffer it is in the next iteration.
# What an iteration proposes is the next point, and the point is the previous one then; what is read no more can be written to.
Buffers = tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]
PICARD: Buffers = ("point",), ("next_state",), {"point": "next_state", "next_state": "point"}
MIXING: Buffers = (
    ("point", "previous", "accepted", "allowed"),
    ("next_state", "proposal", "next_allowed"),
    {
        "point": "proposal",
        "previous": "point",
        "accepted": "next_state",
        "allowed": "next_allowed",
        "next_state": "previous",
        "proposal": "accepted",
        "next_allowed": "allowed",
    },
)
Order = tuple[int, ...]
"""The number of the buffer that each name is in."""


@dataclass(frozen=True)
class Iterated:
    """What an iteration of n rows came to, in memory that the next iterations write to."""

    next_state: Tensor
    """``[n, *state_shape]``"""
    residual: NDArray[np.floating]
    """``[n]``"""
    logits: Tensor
    """``[n, classes]``, if they were wanted, and so is"""
    movement: Tensor
    """``[n]``, in the norm of label stops."""


@dataclass(frozen=True)
class _Turn:
    """An iteration of some rows with the buffers in some order."""

    run: Callable[[], None]
    found: Iterated
    next_order: Order


class FusedIteration:
    """Iterates the first rows of tensors ``[slots, ...]``, with Picard's solver or with learned mixing.

    The graph (``jfb.onnx.iteration``) is bound to the tensors' memory and to buffers of the same size. They take turns, so that
    whatever an iteration writes lies where the next one reads it. ONNX Runtime binds an input or output to a place and a shape,
    so there is a binding for each number of rows and each turn, made when it is first needed.

    Args:
        tensors: contiguous, of float32, on the CPU: ``point``, ``injection``, and what the solver remembers.
        mixing: whether the graph is one of learned mixing.
        graph: makes the graph, with logits and movement or without; the former when it is first needed.
        classes: how many logits a row has.

    Raises:
        OnnxFileError: if there is no such graph.
    """

    def __init__(self, tensors: Mapping[str, Tensor], mixing: bool, graph: Callable[[bool], ModelProto], classes: int) -> None:
        self._inputs, self._outputs, self._next = MIXING if mixing else PICARD
        self._graph = graph
        self._sessions = {False: new_session(graph(False))}
        self._turns: dict[tuple[int, Order, bool], _Turn] = {}
        self._injection, point = tensors["injection"], tensors["point"]
        like = {name: tensors[name] for name in self._inputs}
        like |= {name: torch.empty_like(like["allowed"] if name == "next_allowed" else point) for name in self._outputs}
        self._buffers = list(like.values())
        self._order = self._settled_order = tuple(range(len(self._buffers)))
        self._residual, self._movement = torch.empty(len(point)), torch.empty(len(point))
        self._logits = torch.empty(len(point), classes)

    def __call__(self, rows: int, *, logits: bool) -> Iterated:
        """Iterate the first rows once; if that raises, nothing has changed. The result is elsewhere until ``settle``."""
        key = rows, self._order, logits
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = self._turn(*key)
        turn.run()
        self._order = turn.next_order
        return turn.found

    def settle(self) -> dict[str, Tensor]:
        """The tensors that have taken the place of ``tensors``, or of those that the last call returned; none if none have."""
        if self._order == self._settled_order:
            return {}
        self._settled_order = self._order
        return {name: self._buffers[place] for name, place in zip(self._inputs, self._order, strict=False)}

    def _session(self, logits: bool) -> InferenceSession:
        if logits not in self._sessions:
            self._sessions[logits] = new_session(self._graph(logits))
        return self._sessions[logits]

    def _turn(self, rows: int, order: Order, logits: bool) -> _Turn:
        places = dict(zip((*self._inputs, *self._outputs), order, strict=True))
        inputs = {name: self._buffers[places[name]] for name in self._inputs} | {"injection": self._injection}
        outputs = {name: self._buffers[places[name]] for name in self._outputs} | {"residual": self._residual}
        if logits:
            outputs |= {"logits": self._logits, "movement": self._movement}
        session = self._session(logits)
        binding = session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(name, "cpu", 0, np.float32, [rows, *tensor.shape[1:]], tensor.data_ptr())
        found = Iterated(outputs["next_state"][:rows], self._residual[:rows].numpy(), self._logits[:rows], self._movement[:rows])
        next_order = tuple(places[self._next[name]] for name in places)
        return _Turn(partial(session.run_with_iobinding, binding), found, next_order)
