"""FusedIteration: one iteration as one call into ONNX Runtime, without copies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor

from app.engine.slots import SlotTable
from jfb.onnx.network import new_session

# Which of the buffers that take turns an iteration reads and writes, and which buffer has which part in the next iteration:
# what it proposes is the next point, the point is the previous one then, and what is read no more can be written to.
Buffers = tuple[tuple[str, ...], tuple[int, ...]]
PICARD: Buffers = ("point", "next_state"), (1, 0)
MIXING: Buffers = ("point", "previous", "accepted", "next_state", "proposal"), (4, 0, 3, 1, 2)
INPUTS = ("point", "previous", "accepted")


@dataclass(frozen=True)
class Iterated:
    """What an iteration of n rows came to; overwritten by the next but one."""

    next_state: Tensor
    """``[n, *state_shape]``"""
    residual: NDArray[np.floating]
    """``[n]``"""
    logits: Tensor | None
    """``[n, classes]``, if they were wanted; and then also:"""
    movement: Tensor | None
    """``[n]``, in the norm of label stops."""


class FusedIteration:
    """Iterates the rows of a slot table, which must be contiguous, with Picard's solver or with learned mixing.

    The graph (``jfb.onnx.iteration``) is bound to the table's memory and to buffers of the same size. They take turns, so that
    whatever an iteration writes lies where the next one reads it. ONNX Runtime binds an input or output to a place and a shape,
    so there is a binding for each number of rows and each turn, made when it is first needed.

    Args:
        table: rows of float32 on the CPU.
        mixing: whether the graph is one of learned mixing.
        graph: makes the graph, with logits and movement or without; of both a session is made when it is first needed.
        classes: how many logits a row has.
    """

    def __init__(self, table: SlotTable, mixing: bool, graph: Callable[[bool], ModelProto], classes: int) -> None:
        self._table = table
        self._names, self._turn = MIXING if mixing else PICARD
        self._graph = graph
        self._sessions: dict[bool, onnxruntime.InferenceSession] = {}
        self._bindings: dict[tuple[Any, ...], Any] = {}
        inputs = [table.whole(name) for name in self._names if name in INPUTS]
        outputs = [torch.empty_like(inputs[0]) for _ in self._names[len(inputs) :]]
        self._buffers = [*inputs, *outputs]
        self._order = tuple(range(len(self._names)))
        self._allowed = table.whole("allowed") if mixing else None
        self._next_allowed = torch.empty(table.slots)
        self._residual, self._movement = torch.empty(table.slots), torch.empty(table.slots)
        self._logits = torch.empty(table.slots, classes)

    def __call__(self, *, logits: bool) -> Iterated:
        """Iterate the active rows once; if that raises, nothing has changed."""
        table, rows, order = self._table, self._table.active, self._order
        key = rows, order, logits
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind(*key)
        self._session(logits).run_with_iobinding(binding)
        if self._allowed is not None:
            self._allowed[:rows] = self._next_allowed[:rows]
        self._order = tuple(order[place] for place in self._turn)
        named = {name: self._buffers[place] for name, place in zip(self._names, self._order, strict=True)}
        table.replace(**{name: buffer for name, buffer in named.items() if name in INPUTS})
        next_state = named["point" if self._allowed is None else "accepted"][:rows]
        residual = self._residual[:rows].numpy()
        return Iterated(next_state, residual, *((self._logits[:rows], self._movement[:rows]) if logits else (None, None)))

    def _session(self, logits: bool) -> onnxruntime.InferenceSession:
        if logits not in self._sessions:
            self._sessions[logits] = new_session(self._graph(logits))
        return self._sessions[logits]

    def _bind(self, rows: int, order: tuple[int, ...], logits: bool) -> Any:
        inputs = {"injection": self._table.whole("injection")}
        outputs = {"residual": self._residual}
        for name, place in zip(self._names, order, strict=True):
            (inputs if name in INPUTS else outputs)[name] = self._buffers[place]
        if self._allowed is not None:
            inputs["allowed"], outputs["next_allowed"] = self._allowed, self._next_allowed
        if logits:
            outputs |= {"logits": self._logits, "movement": self._movement}
        binding = self._session(logits).io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(name, "cpu", 0, np.float32, [rows, *tensor.shape[1:]], tensor.data_ptr())
        return binding
