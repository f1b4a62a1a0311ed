"""fixed_point(): the fixed point of any function, as a differentiable layer of any model."""

from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, Unpack, overload

import torch
from torch import Tensor

from jfb.config import ResidualNorm, must_be_one_of
from jfb.gradients import GRADIENTS, Gradient, Search
from jfb.network import ImplicitNetwork
from jfb.solution import Solution
from jfb.solvers import SOLVERS, Solver, solvers_for

State = TypeVar("State", Tensor, tuple[Tensor, ...])


class Settings(TypedDict, total=False):
    """The settings of ``fixed_point``."""

    gradient: str | Gradient
    tolerance: float
    max_iterations: int
    residual_norm: ResidualNorm
    solver: str | Solver | None
    bfloat16: bool


@overload
def fixed_point(function: Callable[[State], State], start: State, **settings: Unpack[Settings]) -> tuple[State, Solution]: ...
@overload
def fixed_point(function: ImplicitNetwork, *, injection: Tensor, **settings: Unpack[Settings]) -> tuple[Tensor, Solution]: ...
def fixed_point(
    function: Callable[..., object] | ImplicitNetwork,
    start: object = None,
    *,
    injection: Tensor | None = None,
    gradient: str | Gradient = "jfb",
    tolerance: float = 1e-3,
    max_iterations: int = 50,
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE,
    solver: str | Solver | None = None,
    bfloat16: bool = False,
) -> tuple[object, Solution]:
    """Find ``u = function(u)`` for every row, and make it differentiable in every tensor that the function uses.

    Each row stops by itself. A function is still called with all rows, because it may use other tensors of the batch; a row
    that has stopped keeps its last state. An ``ImplicitNetwork`` is called with the rows that still iterate.

    Args:
        function: maps a state to the next one, of the same shape. No row of it may depend on another row, so batch normalisation
            must be in evaluation mode. Or an ``ImplicitNetwork``, whose ``step`` is that function.
        start: where the iteration starts: a tensor ``[n, ...]``, or a tuple of tensors ``[n, ...]`` of one type, such as
            the scales of a multi-scale state. Gradients reach it with ``unrolled`` and ``explicit`` only: a fixed point does
            not depend on it. A network says itself where it starts.
        injection: of a network and only of one: ``network.inject(inputs)``, which gradients reach.
        gradient: one of ``jfb.gradients.GRADIENTS``, or its name: ``jfb``, ``neumann``, ``jacobian``, ``unrolled`` or
            ``explicit``.
        tolerance: on the residual of a row; positive.
        max_iterations: evaluations of the function in the search, at least 1.
        residual_norm: over all entries of a row, those of all tensors of a tuple together.
        solver: a solver, or the name of one that needs no settings and can solve this; Picard iteration by default.
        bfloat16: whether the search computes in bfloat16, as ``jfb.Search`` says.

    Returns:
        The state, like ``start``, with its graph; and the result of the search, whose ``fixed_point`` is the state without a
        graph. A function's is one vector per row.

    Raises:
        ValueError: for an unknown gradient or solver, for tensors of different batch sizes, types or devices, for a
            function that returns other shapes, and as ``jfb.solve``.
        TypeError: for a function that does not return what ``start`` is: a tensor, or a tuple of as many tensors; for an
            injection without a network, and a network without an injection.
    """
    if isinstance(function, ImplicitNetwork) != (injection is not None) or (injection is not None and start is not None):
        raise TypeError(f"injection: must be given for an ImplicitNetwork, in place of start (got {type(function).__name__})")
    network = function if isinstance(function, ImplicitNetwork) else _Layer(function, start)
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient: {must_be_one_of(GRADIENTS, gradient)}")
        gradient = GRADIENTS[gradient]()
    if isinstance(solver, str):
        if solver not in (known := solvers_for(type(network))):
            raise ValueError(f"solver: {must_be_one_of(known, solver)}")
        solver = SOLVERS[solver]()
    search = Search(tolerance, max_iterations, residual_norm, solver, bfloat16)
    if not isinstance(network, _Layer):
        assert injection is not None
        return gradient(network, injection, search)
    rows = torch.arange(len(network.latest), device=network.latest.device)
    state, solution = gradient(network, rows, search)
    return network.split(state), solution


class _Layer(ImplicitNetwork):
    """A function as a network, for the solvers and gradients: states are one vector per row, the injection is the rows' numbers.

    Attributes:
        latest: the state of every row when it was last evaluated, shape ``[n, size]``.
    """

    def __init__(self, function: Callable[..., object], start: object) -> None:
        super().__init__()
        self.function = function
        self.is_tensor = isinstance(start, Tensor)
        self.start = _parts("start", start)
        first = self.start[0]
        for part in self.start:
            fits = part.dim() and part.is_floating_point() and len(part) == len(first)
            if not fits or part.dtype != first.dtype or part.device != first.device:
                given = ", ".join(f"{list(part.shape)} {part.dtype} {part.device}" for part in self.start)
                raise ValueError(f"start: must be tensors [n, ...] of one n, floating-point type and device (got {given})")
        self.latest = _join(self.start).detach()

    def inject(self, inputs: Tensor) -> Tensor:
        return inputs

    def initial_state(self, injection: Tensor) -> Tensor:
        return _join(self.start)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        if len(injection) == len(self.latest):
            self.latest = state.detach()
            return self.evaluate(state)
        # Rows have left, but the function may use tensors of all rows. A copy, because it may have kept what it was given.
        self.latest = self.latest.index_copy(0, injection, state)
        return self.evaluate(self.latest)[injection]

    def readout(self, state: Tensor) -> Tensor:
        return state

    def evaluate(self, state: Tensor) -> Tensor:
        result = self.function(self.split(state))
        if self.is_tensor and not isinstance(result, Tensor):
            raise TypeError(f"function's result: must be a tensor, like start (got {type(result).__name__})")
        if not self.is_tensor and not (isinstance(result, tuple) and len(result) == len(self.start)):
            given = f"tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
            raise TypeError(f"function's result: must be a tuple of {len(self.start)} tensors, like start (got {given})")
        parts = _parts("function's result", result)
        for part, expected in zip(parts, self.start, strict=True):
            if part.shape != expected.shape:
                raise ValueError(
                    f"function's result: must have shape {list(expected.shape)}, like start (got {list(part.shape)})"
                )
        return _join(parts).to(state.dtype)  # which autocast changes

    def split(self, state: Tensor) -> Any:
        """The state as ``start`` is: a tensor, or a tuple of tensors."""
        vectors = torch.split(state, [part.shape[1:].numel() for part in self.start], 1)
        parts = tuple(vector.view(part.shape) for vector, part in zip(vectors, self.start, strict=True))
        return parts[0] if self.is_tensor else parts


def _parts(name: str, value: object) -> tuple[Tensor, ...]:
    parts = (value,) if isinstance(value, Tensor) else value
    if not isinstance(parts, tuple) or not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"{name}: must be a tensor or a tuple of tensors (got {type(value).__name__})")
    return parts


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    """One vector per row; always a copy, because the function may return a tensor that it goes on using."""
    return torch.cat([part.reshape(len(part), part.shape[1:].numel()) for part in parts], 1)
