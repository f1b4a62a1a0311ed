"""SlotTable: rows in preallocated tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jfb.rows import gaps
from jfb.solvers import Memory


class SlotTable:
    """Rows in preallocated tensors ``[slots, ...]``; the active ones come first, without gaps.

    What the iteration needs is on the device; what decides when a row ends is on the host, as NumPy arrays, where reading
    it costs next to nothing. Attributes are views of the active rows, renewed as rows are admitted and removed.

    Args:
        point, injection, memory: any rows, as many as there shall be slots, to take shapes, dtype and device from.

    Attributes:
        point, injection, memory: on the device; what ``step`` and the solver work on.
        request, row: the number of the request that a row is of, and which of its rows it is.
        tolerance: of the point's dtype, so that it compares as it does in ``jfb.solve``.
        by_label: which rows end, too, when their label cannot change any more.
        margin, bound: of those rows, as in ``jfb.label_stop.Stability``. NaN until they are judged.
        deadline: infinite where there is none.
    """

    request: NDArray[np.int64]
    row: NDArray[np.int64]
    tolerance: NDArray[np.floating]
    max_iterations: NDArray[np.int64]
    iterations: NDArray[np.int64]
    by_label: NDArray[np.bool_]
    margin: NDArray[np.float64]
    bound: NDArray[np.float64]
    deadline: NDArray[np.float64]

    def __init__(self, point: Tensor, injection: Tensor, memory: Memory) -> None:
        self.slots = point.shape[0]
        self.active = 0
        self._device = {name: tensor.clone() for name, tensor in {"point": point, "injection": injection, **memory}.items()}
        # The same memory where it is the host's: to move a few rows takes NumPy a third of the time that PyTorch takes.
        self._views = {tensor: _on_host(tensor) for tensor in self._device.values()}  # of all tensors that have been rows
        self._rows: dict[str, Any] = {name: self._views[tensor] for name, tensor in self._device.items()}
        self._memory_names = list(memory)
        self._host: dict[str, NDArray[Any]] = {
            **{name: np.zeros(self.slots, np.int64) for name in ("request", "row", "max_iterations", "iterations")},
            **{name: np.zeros(self.slots, np.float64) for name in ("deadline", "margin", "bound")},
            "tolerance": torch.zeros(self.slots, dtype=point.dtype).numpy(),
            "by_label": np.zeros(self.slots, np.bool_),
        }
        self._resize(0)

    @property
    def point(self) -> Tensor:
        return self._device["point"][: self.active]

    @property
    def injection(self) -> Tensor:
        return self._device["injection"][: self.active]

    @property
    def memory(self) -> Memory:
        return {name: self._device[name][: self.active] for name in self._memory_names}

    @property
    def tensors(self) -> Memory:
        """The tensors ``[slots, ...]`` behind ``point``, ``injection`` and ``memory``, by name."""
        return dict(self._device)

    def fill(self, active: int) -> None:
        """Take whatever lies in the slots for that many rows, to try them out."""
        self._resize(active)

    def replace(self, **tensors: Tensor) -> None:
        """Put other tensors behind those names, of the same shape, dtype and device; they have the active rows already."""
        for name, tensor in tensors.items():
            if tensor not in self._views:
                self._views[tensor] = _on_host(tensor)
            self._device[name] = tensor
            self._rows[name] = self._views[tensor]

    def admit(self, *, point: Tensor, injection: Tensor, memory: Memory, **host: ArrayLike) -> None:
        """Write rows behind the active ones; there must be room. ``host`` names what is on the host.

        Iterations begin at 0, and nothing is known of margin and bound, unless they are in it.
        """
        begin, end = self.active, self.active + point.shape[0]
        self._host["iterations"][begin:end] = 0
        self._host["margin"][begin:end] = self._host["bound"][begin:end] = np.nan
        for name, tensor in {"point": point, "injection": injection, **memory}.items():
            self._device[name][begin:end] = tensor
        for name, values in host.items():
            self._host[name][begin:end] = values
        self._resize(end)

    def admit_from(self, other: "SlotTable", rows: NDArray[np.intp]) -> None:
        """Write rows of another table as they are; it still has them then."""
        index = torch.from_numpy(rows)
        self.admit(
            point=other.point[index],
            injection=other.injection[index],
            memory={name: tensor[index] for name, tensor in other.memory.items()},
            **{name: array[rows] for name, array in other._host.items()},
        )

    def remove(self, ended: NDArray[np.bool_]) -> None:
        """Drop rows, ``ended`` being ``[active]``; the last ones move into their places."""
        staying = self.active - int(np.count_nonzero(ended))
        if staying:
            holes, movers = gaps(ended)
            for rows in (*self._rows.values(), *self._host.values()) if len(holes) else ():
                rows[holes] = rows[movers]
        self._resize(staying)

    def _resize(self, active: int) -> None:
        self.active = active
        for name, array in self._host.items():
            setattr(self, name, array[:active])


def _on_host(tensor: Tensor) -> Any:
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
