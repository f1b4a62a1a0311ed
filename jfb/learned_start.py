"""LearnedStart: a small network that guesses the fixed point, so that the iteration begins near it."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class LearnedStart(nn.Module):
    """``u_0 = g(q)``: from the injection to a guess of the fixed point, evaluated once per input.

    ``python -m training accelerate MODEL --start`` trains it on fixed points of training inputs, without labels. It decides where
    the iteration begins and nothing else: what the fixed point is, and when a row has converged, only ``step`` says.

    For images whose state has the injection's height and width, g is the sum of two convolutions, which see 5 by 5 positions, and
    of two matrices with a bottleneck between them, which see all; otherwise it is these matrices alone.

    Args:
        injection_shape, state_shape: of one row.
        bottleneck: numbers between the two matrices.
    """

    def __init__(self, injection_shape: Sequence[int], state_shape: Sequence[int], bottleneck: int) -> None:
        super().__init__()
        self.injection_shape, self.state_shape = tuple(injection_shape), tuple(state_shape)
        self.everywhere = nn.Sequential(
            nn.Flatten(),
            nn.Linear(prod(injection_shape), bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, prod(state_shape)),
            nn.Unflatten(1, self.state_shape),
        )
        self.nearby = None
        if len(state_shape) == 3 and injection_shape[1:] == state_shape[1:]:
            before, after = injection_shape[0], state_shape[0]
            self.nearby = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1))

    def forward(self, injection: Tensor) -> Tensor:
        guess: Tensor = self.everywhere(injection)
        return guess if self.nearby is None else self.nearby(injection) + guess
