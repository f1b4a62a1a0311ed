"""LearnedStart: a small network that guesses the fixed point, so that the iteration begins near it."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F


class LearnedStart(nn.Module):
    """``u_0 = g(q)``: from the injection to a guess of the fixed point, evaluated once per input.

    ``python -m training accelerate MODEL --start`` trains it on fixed points of training inputs, without labels. It decides where
    the iteration begins and nothing else: what the fixed point is, and when a row has converged, only ``step`` says.

    For images whose state has the injection's height and width, g is ``C_2 h + B φ(A h)`` with ``h = φ(C_1 q)``: two
    convolutions, which see 5 by 5 positions, and two matrices with a bottleneck between them, which see all. For others it is
    ``B φ(A q)``.

    Args:
        injection_shape, state_shape: of one row.
        bottleneck: rows of A.
    """

    def __init__(self, injection_shape: Sequence[int], state_shape: Sequence[int], bottleneck: int) -> None:
        super().__init__()
        self.injection_shape, self.state_shape = tuple(injection_shape), tuple(state_shape)
        self.first = self.second = None
        if len(state_shape) == 3 and injection_shape[1:] == state_shape[1:]:
            before, after = injection_shape[0], state_shape[0]
            self.first = nn.Conv2d(before, after, 3, padding=1)
            self.second = nn.Conv2d(after, after, 3, padding=1)
        seen = prod(injection_shape if self.first is None else state_shape)
        self.everywhere = nn.Sequential(
            nn.Flatten(),
            nn.Linear(seen, bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, prod(state_shape)),
            nn.Unflatten(1, self.state_shape),
        )

    def forward(self, injection: Tensor) -> Tensor:
        if self.first is None or self.second is None:
            return self.everywhere(injection)  # type: ignore[no-any-return]
        hidden = F.relu(self.first(injection))
        return self.second(hidden) + self.everywhere(hidden)  # type: ignore[no-any-return]
