"""The choice of backends: a short measurement when a model is loaded."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog
import torch
from torch import Tensor

from app.engine.backends.backend import MAPS, Backend, Compute, FastestBackend, Map
from app.settings import Precision
from jfb.mixed_precision import MARGIN

AGREEMENT = 1e-4  # how far answers may be from those of float32 eager PyTorch, in units of the largest entry if that is over 1
LOW_PRECISION_AGREEMENT = 2.0**-4  # the same, for one step in low precision
MAX_LOW_PRECISION_SHARE = 0.5
"""Of the time of a step in full precision, for low precision to be used: it divides each batch in two, which cost more than the
whole. At 0.62 the engine answered no more requests with it (benchmarks/results/engine.md)."""
COMPARED_RESIDUAL = 1e-3  # relative to the first, at which the times of low precisions are compared
MAX_SHARE_OF_BEST = 0.9  # of the time of the backend that is best over all batch sizes, for another to be used at one of them
TICK_SECONDS = 8e-4
"""Of a tick without its step, however many rows it has: the host's work under load, its messages included
(benchmarks/results/engine.md)."""
MAX_SHARE_OF_BEST_BATCH = 1.1  # of the time per row in the best of batches, for a smaller batch to be preferred
MEASUREMENT_SECONDS = 0.02  # for a backend at a batch size, or three runs if those take longer

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Choice:
    """What was found."""

    backend: FastestBackend
    table: dict[Map, list[str]]  # for each map, the name of the fastest backend for at most 1, 2, 4, ... rows
    step_seconds: list[float]  # of the fastest step of 1, 2, 4, ... rows
    low_precision: Backend | None
    """What to compute steps with that are far from the tolerance; None if low precision does not pay."""
    refused: dict[str, str] = field(default_factory=dict)  # backends that were not considered, and why

    @property
    def best_slots(self) -> int:
        """The smallest batch whose rows take hardly longer than in the best one, each with its share of the tick."""
        per_row = [(seconds + TICK_SECONDS) / 2**k for k, seconds in enumerate(self.step_seconds)]
        smallest: int = next(k for k, seconds in enumerate(per_row) if seconds <= MAX_SHARE_OF_BEST_BATCH * min(per_row))
        return 1 << smallest


@torch.inference_mode()
def choose(
    candidates: Mapping[str, Backend],
    inputs: Tensor,
    *,
    only: str | None = None,
    low_precision: Mapping[str, Backend] | None = None,
    precision: Precision = "auto",
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Try backends on a probe batch, refuse those that give other answers, and find out which is fastest at which batch size.

    Args:
        candidates: by name. The first is the reference, float32 eager PyTorch, and is never refused.
        inputs: raw, shape ``[n, *input_shape]``, a probe; batches of 1, 2, 4, ... up to n rows are measured.
        only: the one that must be taken.
        low_precision: by name, to take one of, or none.
        precision: whether to use one: where it pays, never, or even if it does not pay.

    ``ValueError`` if the one that must be taken is refused, and for ``mixed`` where low precision is, or there is none.
    """
    reference = next(iter(candidates.values()))
    inputs = inputs.to(reference.device, reference.dtype)
    injection = reference.inject(inputs)
    first = reference.initial_state(injection).clone()
    state = reference.step(first, injection).clone()
    next_state = reference.step(state, injection).clone()
    arguments: dict[Map, tuple[Tensor, ...]] = {
        "inject": (inputs,),
        "initial_state": (injection,),
        "step": (state, injection),
        "readout": (next_state,),
    }
    expected: dict[Map, Tensor] = {
        "inject": injection,
        "initial_state": first,
        "step": next_state,
        "readout": reference.readout(next_state).clone(),
    }

    backends, refused = dict(candidates), {}
    for name, backend in list(candidates.items())[1:]:
        reasons = ((kind, _difference(getattr(backend, kind), arguments[kind], expected[kind], AGREEMENT)) for kind in MAPS)
        if reason := next((f"{kind}: {reason}" for kind, reason in reasons if reason), ""):
            refused[name] = reason
            del backends[name]
            log.warning("backend refused", backend=name, reason=reason)
    if only is not None and only not in backends:
        raise ValueError(f"backend: {only} cannot compute this model: {refused.get(only, 'there is none for this model')}")

    measured = {name: backend for name, backend in backends.items() if only in (None, name)}
    sizes = [2**k for k in range(max(len(inputs) - 1, 0).bit_length() + 1)]
    seconds: dict[Map, list[dict[str, float]]] = {name: [] for name in MAPS}
    for rows, name in itertools.product(sizes, MAPS):
        some = tuple(tensor[:rows] for tensor in arguments[name])
        seconds[name].append(_seconds({key: getattr(backend, name) for key, backend in measured.items()}, some, clock))
    table = {name: _fastest(seconds[name]) for name in MAPS}
    step_seconds = [found[name] for found, name in zip(seconds["step"], table["step"], strict=True)]
    fastest = FastestBackend(backends, table)

    low: Backend | None = None
    if low_precision and precision != "float32":
        alike = [
            name
            for name, backend in measured.items()
            if not _dependence(backend.inject, (inputs,), sizes[1:])
            and not _dependence(backend.initial_state, (injection,), sizes[1:])
        ]
        for name, backend in low_precision.items():
            reason = _difference(backend.step, arguments["step"], next_state, LOW_PRECISION_AGREEMENT)
            reason = reason or _dependence(backend.step, arguments["step"], sizes)
            if reason or not alike:
                refused[name] = reason or "injections or initial states are rounded differently in batches of different sizes"
        lows = {name: backend for name, backend in low_precision.items() if name not in refused}
        times = _seconds(
            {"full": fastest.step} | {name: backend.step for name, backend in lows.items()}, arguments["step"], clock
        )
        shares = {name: times[name] / times["full"] for name in lows}
        for name, share in shares.items():
            if precision == "auto" and share > MAX_LOW_PRECISION_SHARE:
                refused[name] = f"a step takes {share:.2f} of the time of one in full precision"
        if costs := {name: _cost(shares[name], lows[name].roundoff) for name in lows if name not in refused}:
            low = lows[min(costs, key=costs.__getitem__)]
            once: tuple[Map, ...] = ("inject", "initial_state")
            table |= {name: [table[name][-1] if table[name][-1] in alike else alike[0]] * len(sizes) for name in once}
            fastest = FastestBackend(backends, table, in_pairs=True)
    if precision == "mixed" and low is None:
        reason = next((refused[name] for name in low_precision or ()), "there is no low precision here")
        raise ValueError(f"precision: must be float32 or auto (got mixed): {reason}")
    return Choice(fastest, table, step_seconds, low, refused)


def _cost(share: float, roundoff: float) -> float:
    """The time until ``COMPARED_RESIDUAL`` as a share of full precision's, if each step lowers the residual as much as any other.

    Args:
        share: a step's time in low precision, in which rows stay until the effect of rounding, as a share of full precision's.
    """
    in_low_precision = math.log(MARGIN * roundoff) / math.log(COMPARED_RESIDUAL)
    return 1 - in_low_precision * (1 - share)


def _fastest(seconds: list[dict[str, float]]) -> list[str]:
    """For each batch size the name of the backend to take: one for all, but where another is clearly faster."""
    overall = min(seconds[0], key=lambda name: math.prod(found[name] for found in seconds))
    pairs = [(found, min(found, key=found.__getitem__)) for found in seconds]
    return [name if found[name] <= MAX_SHARE_OF_BEST * found[overall] else overall for found, name in pairs]


def _dependence(compute: Compute, arguments: tuple[Tensor, ...], sizes: list[int]) -> str:
    """Whether rounding depends on the batch size: in low precision a row could tell from its answer what company it had."""
    together = compute(*arguments)
    for rows in sizes:
        if not torch.equal(compute(*(tensor[:rows] for tensor in arguments)), together[:rows]):
            return f"{rows} rows are rounded differently than {len(together)}"
    return ""


def _difference(compute: Compute, arguments: tuple[Tensor, ...], expected: Tensor, agreement: float) -> str:
    """Why a backend must not be used; nothing if it may."""
    try:
        found = compute(*arguments)
    except torch.AcceleratorError:
        raise
    except Exception as error:  # whatever a runtime raises, others can do its work
        return f"{type(error).__name__}: {error}"
    if found.shape != expected.shape:
        return f"shape {list(found.shape)} where float32 eager has {list(expected.shape)}"
    if not expected.numel():
        return ""
    allowed = agreement * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    return "" if difference <= allowed else f"{difference:.1e} from float32 eager, where {allowed:.1e} is allowed"


def _seconds(functions: Mapping[str, Compute], arguments: tuple[Tensor, ...], clock: Callable[[], float]) -> dict[str, float]:
    """The best of several runs of each, in turn, as others may be using the machine."""

    def once(function: Compute) -> float:
        began = clock()
        result = function(*arguments)
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        return clock() - began

    found = {name: once(function) for name, function in functions.items()}  # warms up
    longest = max(*found.values(), 1e-6)
    rounds = 2 if len(functions) == 1 else max(3, min(20, int(MEASUREMENT_SECONDS / longest)))
    runs = [{name: once(function) for name, function in functions.items()} for _ in range(rounds)]
    return {name: min(run[name] for run in runs) for name in functions}
