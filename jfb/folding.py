"""Folding: merge the fixed affine maps of a trained network into the convolutions before them."""

from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Module = TypeVar("Module", bound=nn.Module)


def fold_batch_norms(module: Module) -> Module:
    """Fold each batch normalisation that directly follows a convolution in an ``nn.Sequential`` into it, in place.

    Args:
        module: in evaluation mode; changed and returned.
    """
    for part in list(module.modules()):
        if isinstance(part, nn.Sequential):
            for index in range(len(part) - 1):
                first, second = part[index], part[index + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    part[index], part[index + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return module
