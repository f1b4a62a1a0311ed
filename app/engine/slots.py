"""SlotTable: rows in preallocated tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jfb.rows import gaps, to_device
from jfb.solvers import Memory

NONE = np.zeros(0, np.intp)


class SlotTable:
    """Rows in preallocated tensors ``[slots, ...]``; the active ones come first, without gaps.

    Rows that are removed leave gaps, and rows that are admitted fill them, so nothing is moved while others are waiting. Before
    the active rows are read again, ``close_gaps`` moves the last ones into the gaps that are left.

    What the iteration needs is on the device; what decides when a row ends is on the host, as NumPy arrays, where reading
    it costs next to nothing. Attributes are views of the active rows.

    Args:
        point, injection, memory: any rows, as many as there shall be slots, to take shapes, dtype and device from.

    Attributes:
        active: the number of rows, without gaps.
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
        self.fill(0)

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
        self._gaps = NONE
        self._resize(active)

    def replace(self, **tensors: Tensor) -> None:
        """Put other tensors behind those names, of the same shape, dtype and device; they have the active rows already."""
        for name, tensor in tensors.items():
            if tensor not in self._views:
                self._views[tensor] = _on_host(tensor)
            self._device[name] = tensor
            self._rows[name] = self._views[tensor]

    def admit(self, *, point: Tensor, injection: Tensor, memory: Memory, **host: ArrayLike) -> None:
        """Write rows into gaps, and behind the last row; there must be room. ``host`` names what is on the host.

        Iterations begin at 0, and nothing is known of margin and bound, unless they are in it.
        """
        rows, end = point.shape[0], self.active + len(self._gaps)
        filled, self._gaps = self._gaps[:rows], self._gaps[rows:]
        on_host: slice | NDArray[np.intp] = slice(end, end + rows)
        on_device: Any = on_host
        if len(filled):
            on_host = np.concatenate([filled, np.arange(end, end + rows - len(filled))])
            on_device = self._index(on_host)
        self._host["iterations"][on_host] = 0
        self._host["margin"][on_host] = self._host["bound"][on_host] = np.nan
        for name, tensor in {"point": point, "injection": injection, **memory}.items():
            self._rows[name][on_device] = _on_host(tensor)
        for name, values in host.items():
            self._host[name][on_host] = values
        self._resize(self.active + rows)

    def admit_from(self, other: "SlotTable", rows: NDArray[np.intp]) -> None:
        """Write rows of another table as they are; it still has them then."""
        index = to_device(rows, other.point.device)
        self.admit(
            point=other.point[index],
            injection=other.injection[index],
            memory={name: tensor[index] for name, tensor in other.memory.items()},
            **{name: array[rows] for name, array in other._host.items()},
        )

    def remove(self, ended: NDArray[np.bool_]) -> None:
        """Drop rows, ``ended`` being ``[active]``, while there are no gaps."""
        staying = np.flatnonzero(~ended)
        self._gaps = np.flatnonzero(ended[: staying[-1]]) if len(staying) else NONE  # behind the last row there are none
        self._resize(len(staying))

    def close_gaps(self) -> None:
        """Move rows from the end into the gaps that are left."""
        if not len(self._gaps):
            return
        removed = np.zeros(self.active + len(self._gaps), np.bool_)
        removed[self._gaps] = True
        places = np.stack(gaps(removed))
        for rows, (into, outof) in ((self._rows, self._index(places)), (self._host, places)):
            for array in rows.values():
                array[into] = array[outof]
        self._gaps = NONE

    def _resize(self, active: int) -> None:
        self.active = active
        for name, array in self._host.items():
            setattr(self, name, array[:active])

    def _index(self, places: NDArray[np.intp]) -> Any:
        """Of these places in ``_rows``."""
        device = self._device["point"].device
        return places if device.type == "cpu" else to_device(places, device)


def _on_host(tensor: Tensor) -> Any:
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
