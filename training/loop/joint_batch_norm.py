"""Batch normalisation over the whole batch of several processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class JointBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with training statistics over the batches of all processes.

    Like torch's ``SyncBatchNorm``, which works on CUDA only. In evaluation mode, and in the names of its parameters, an
    ordinary ``nn.BatchNorm2d``.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        count = _total(torch.tensor(features.numel() / features.shape[1], device=features.device))
        mean = _total(features.sum((0, 2, 3))) / count
        centred = features - mean[:, None, None]
        # In two passes: the mean of squares minus the square of the mean cancels in float32.
        variance = _total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        normalised = centred * (variance + self.eps).rsqrt()[:, None, None]
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


def join_batch_norms(network: nn.Module) -> None:
    """Replace every ``nn.BatchNorm2d`` in a network by a ``JointBatchNorm2d`` with the same weights."""
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            joint = JointBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum).to(child.weight.device)
            joint.load_state_dict(child.state_dict())
            setattr(network, name, joint)
        else:
            join_batch_norms(child)


class _Total(torch.autograd.Function):
    """All-reduce of a sum, with the all-reduce of the gradients as its backward pass."""

    @staticmethod
    def forward(context: Any, numbers: Tensor) -> Tensor:
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _total(numbers: Tensor) -> Tensor:
    total: Tensor = _Total.apply(numbers)  # type: ignore[no-untyped-call]
    return total
