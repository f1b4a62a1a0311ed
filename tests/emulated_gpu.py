"""A GPU that is emulated on the CPU: its devices, waits and graphs, not its speed or rounding.

Tensors on it are tensors on the CPU that say that they are on ``cuda:0``. An operation that mixes both devices raises, and so
does one that waits for the GPU while a graph is captured; other waits are counted. A captured graph is a list of operations,
which are replayed on the tensors that they were captured with.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITING = (
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
    *(Tensor.nonzero, Tensor.unique, Tensor.masked_select, torch.nonzero, torch.unique, torch.masked_select, torch.equal),
)
MOVING = (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as, torch.tensor, torch.as_tensor)
MIXING = (Tensor.copy_, Tensor.to, Tensor.type_as, Tensor.__setitem__, Tensor.__getitem__)

waits: Counter[str] = Counter()
"""What has waited for the GPU, since this was cleared."""


class OnGpu(Tensor):
    """A tensor on the emulated GPU."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return call(function, list(args), dict(kwargs or {}))


class Machine(TorchFunctionMode):
    """A machine that has such a GPU."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return call(function, list(args), dict(kwargs or {}))


def call(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Compute a function of PyTorch on the CPU, and say where its result is."""
    with torch._C.DisableTorchFunction():
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
        first = args[0] if args else None
        kwargs.pop("pin_memory", None)
        if function is Tensor.pin_memory:
            return first
        if on_gpu:
            match getattr(function, "__name__", ""), getattr(function, "__self__", None):
                case "__get__", Tensor.device:
                    return GPU
                case "__get__", Tensor.is_cuda:
                    return True
                case "__deepcopy__", _:
                    return deep_copied(*args)
                case "numpy", _:
                    raise TypeError("can't convert cuda:0 device type tensor to numpy")
                case "_has_compatible_shallow_copy_type", _:
                    return False  # so that modules replace their parameters, which would remain on the CPU

        to = target(function, args, kwargs)
        if function is Tensor.cuda:
            function, args = Tensor.to, [first, CPU]
        if on_gpu and function not in MIXING and to is None:
            for tensor in tensors:
                if not isinstance(tensor, OnGpu) and tensor.dim():
                    raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {function}")
        is_on_gpu = isinstance(first, OnGpu)
        moved = to is not None and is_on_gpu != (to == GPU) and function in MOVING
        if (on_gpu or to == GPU) and is_wait(function, args, kwargs, moved):
            name = getattr(function, "__name__", str(function))
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
            waits[name] += 1
        result = function(*args, **kwargs)
        if moved and isinstance(first, Tensor) and result.data_ptr() == first.data_ptr():
            result = result.clone()
        stays = to == GPU or (to is None and (is_on_gpu if function is Tensor.copy_ else on_gpu))
        return tree_map(placed, result) if stays and not isinstance(result, torch.Size) else result


def target(function: Any, args: list[Any], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that is asked for, if any is; in the arguments, the CPU takes its place."""
    if function in (Tensor.cpu, Tensor.cuda):
        return CPU if function is Tensor.cpu else GPU
    if function in (Tensor.to, Tensor.type_as):
        for place, value in enumerate(args[1:], 1):
            if isinstance(value, Tensor):
                return GPU if isinstance(value, OnGpu) else CPU
            if isinstance(value, torch.device | str):
                args[place] = CPU
                return GPU if torch.device(value).type == "cuda" else CPU
    if (device := kwargs.get("device")) is None:
        return None
    kwargs["device"] = CPU
    return GPU if torch.device(device).type == "cuda" else CPU


def is_wait(function: Any, args: list[Any], kwargs: dict[str, Any], moved: bool) -> bool:
    """Whether the host waits for the GPU, as PyTorch does for all copies that are not said to be asynchronous."""
    if function in WAITING:
        return True
    if function in (Tensor.__getitem__, Tensor.__setitem__):  # indices and values are copied; flags are counted
        parts = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim]
        flags = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
        return bool(flags) or not all(isinstance(part, OnGpu) for part in parts)
    if function is Tensor.copy_:
        moved = isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu)
    return moved and not kwargs.get("non_blocking", False)


def placed(result: Any) -> Any:
    return result.as_subclass(OnGpu) if isinstance(result, Tensor) and not isinstance(result, OnGpu) else result


def deep_copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        copy = tensor.detach().clone().as_subclass(OnGpu)
        copy.requires_grad_(tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter):
            copy._is_param = True  # type: ignore[attr-defined]
        memo[id(tensor)] = copy
    found: Tensor = memo[id(tensor)]
    return found


class Recorder(TorchDispatchMode):
    """Keeps each operation, with the tensors that it has read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[[], Any], Any]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
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


class Stream:
    """All streams are one: operations are computed at once."""

    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, stream: "Stream") -> None: ...

    def wait_event(self, event: "Event") -> None: ...

    def record_event(self) -> "Event":
        return Event()


class Event:
    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None:
        waits["Event.synchronize"] += 1


class Graph:
    replay: Callable[[], None]


@contextmanager
def emulated_gpu() -> Iterator[None]:
    """Give this process a GPU, in all threads that it starts meanwhile."""
    capturing = [False]

    @contextmanager
    def capture(graph: Graph, **_: object) -> Iterator[None]:
        capturing[0] = True
        try:
            with Recorder() as recorder:
                yield
        finally:
            capturing[0] = False

        def replay() -> None:
            with torch._C.DisableTorchFunction():
                recorder.replay()

        graph.replay = replay

    @contextmanager
    def stream(_: object) -> Iterator[None]:
        yield

    def memory(device: object = None) -> int:
        return 2**20

    def nothing(*_: object) -> None: ...

    run = threading.Thread.run

    def run_with_gpu(thread: threading.Thread) -> None:
        with Machine():
            run(thread)

    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": capture,
        "stream": stream,
        "graph_pool_handle": lambda: (0, 0),
        "current_stream": Stream,
        "is_current_stream_capturing": lambda: capturing[0],
        "synchronize": nothing,
        "mem_get_info": lambda device=None: (2**30, 2**31),
        "memory_allocated": memory,
        "memory_reserved": memory,
        "max_memory_allocated": lambda device=None: 2 * memory(),
        "reset_peak_memory_stats": nothing,
        "get_device_capability": lambda device=None: (8, 0),
    }
    waits.clear()
    methods = mock.patch.multiple(Tensor, record_stream=nothing)  # which checks the type of its stream before all else
    threads = mock.patch.object(threading.Thread, "run", run_with_gpu)
    with mock.patch.multiple(torch.cuda, **cuda), methods, threads, Machine():
        yield
