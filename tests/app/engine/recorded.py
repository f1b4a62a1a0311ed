"""What a CUDA graph does, on a CPU: operations are recorded once, and replayed on the tensors that they were recorded with."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from app.engine.graphs import WARM_UPS, Run


class Recorder(TorchDispatchMode):
    """Keeps each operation, with the tensors that it has read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[[], Any], Any]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert operation is not torch.ops.aten._local_scalar_dense.default, "the host looks at the device"
        operate = partial(operation, *args, **(kwargs or {}))
        result = operate()
        self.operations.append((operate, result))
        return result

    def replay(self) -> None:
        """Compute the same again, as a GPU does: Python code is not run, and no result lies where it did not lie before."""
        for operate, result in self.operations:
            again = operate()
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if new.data_ptr() != old.data_ptr():  # neither a view nor written in place
                    old.copy_(new)


def _tensors(result: Any) -> list[Tensor]:
    return [one for one in (result if isinstance(result, tuple | list) else [result]) if isinstance(one, Tensor)]


def recorded(run: Run) -> Run:
    """Record a function, as ``CudaGraphs`` captures one."""
    for _ in range(WARM_UPS):
        run()
    with Recorder() as recorder:
        run()
    return recorder.replay
