"""ImplicitNetwork: the three maps that make an implicit network, and nothing else."""

from abc import ABC, abstractmethod
from copy import deepcopy

import torch
from torch import Tensor, nn

from jfb.folding import fold_batch_norms


class ImplicitNetwork(nn.Module, ABC):
    """A network whose answer is read from a fixed point: ``N(d) = S(u*)`` where ``u* = T(u*, d)``.

    Three maps and a start define it (Wu Fung et al., AAAI 2022, eq. 1 to 3; letters in brackets are the paper's):

    * ``inject``  [Q]: raw inputs to latent space, evaluated once per input;
    * ``step``    [T]: one application of the fixed-point map, what an *iteration* is;
    * ``readout`` [S]: latent state to logits, evaluated once per answer.

    Every tensor has the sample in its first dimension, and in evaluation mode nothing that a row computes depends on
    another row. ``step`` keeps that promise in training mode too: no batch statistics there.

    How the fixed point is found (``jfb.solve``) and how it is differentiated (``jfb.gradients``) are not the
    network's business, so the same network is trained with any gradient and served by any solver.
    """

    @abstractmethod
    def inject(self, inputs: Tensor) -> Tensor:
        """Map raw inputs ``[n, *input_shape]`` (not normalised: that is done in here) to the injection ``[n, ...]``."""

    @abstractmethod
    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        """Apply the fixed-point map once: states ``[n, *state_shape]`` to states of the same shape."""

    @abstractmethod
    def readout(self, state: Tensor) -> Tensor:
        """Read logits ``[n, classes]`` from states ``[n, *state_shape]``."""

    def initial_state(self, injection: Tensor) -> Tensor:
        """Where the iteration starts: zeros, shaped like the injection unless a network says otherwise."""
        return torch.zeros_like(injection)

    def constrain(self) -> None:
        """Bring the weights of ``step`` back to where it is a contraction.

        Called at construction and after every optimiser step. The default is for networks that contract whatever
        their weights are.
        """

    def contraction_bound(self) -> float | None:
        """A guaranteed upper bound on the Lipschitz constant of ``step`` in the state (L2), or None if there is none."""
        return None

    def readout_lipschitz(self) -> Tensor | None:
        """Guaranteed bounds ``[classes, classes]`` on how steep the readout is, or None if there are none.

        Entry i, j is at least the Lipschitz constant of ``logit_i − logit_j`` in the state (L2).
        """
        return None

    def folded(self) -> "ImplicitNetwork":
        """Return a copy, for evaluation alone, that computes the same maps with less work (to rounding).

        Here batch normalisations are folded into convolutions; networks that can fold more say so.
        """
        return fold_batch_norms(deepcopy(self).eval())

    def forward(self, state: Tensor) -> Tensor:
        """Alias of ``readout``, for tools that call modules; an implicit network has no other single pass."""
        return self.readout(state)
