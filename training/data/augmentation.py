"""Augmentation of training images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from training.errors import RecipeError
from training.recipe import AugmentRecipe

Augmentation = Callable[[Tensor], Tensor]


def build_augmentation(recipe: AugmentRecipe) -> Augmentation:
    """Return a random map of images, float32 ``[n, channels, height, width]``, that draws from torch's generator.

    Pixels from outside the image are zero.
    """
    changes: list[Augmentation] = []
    if recipe.rotate or recipe.shift or recipe.scale or recipe.shear:
        import kornia.augmentation as K  # imported here, because it takes a second and many recipes do without it

        changes.append(
            K.RandomAffine(
                degrees=recipe.rotate,
                translate=(recipe.shift, recipe.shift),
                scale=(1 - recipe.scale, 1 + recipe.scale),
                shear=recipe.shear,
                p=1.0,
            )
        )
    if recipe.flip:
        changes.append(_flip)
    if recipe.crop:
        changes.append(partial(_crop, padding=recipe.crop))
    if recipe.symmetries:
        changes.append(_symmetries)

    def augment(images: Tensor) -> Tensor:
        for change in changes:
            images = change(images)
        return images

    return augment


def _flip(images: Tensor) -> Tensor:
    """Mirror about half of the images."""
    mirrored = (torch.rand(len(images)) < 0.5).to(images.device)  # drawn on the CPU: the same on every device
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def _crop(images: Tensor, padding: int) -> Tensor:
    """Pad images on each side, and crop each of them to its size at a random place.

    One gather; kornia slices the images one by one, which would be thousands of small operations on a GPU.
    """
    count, channels, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, count, 1)).to(images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    every = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[every, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _symmetries(images: Tensor) -> Tensor:
    """Apply to each image one of the eight rotations and reflections of a square."""
    height, width = images.shape[2:]
    if height != width:
        raise RecipeError(f"augment.symmetries: must be false for images that are not square (got {height}x{width})")
    chosen = torch.randint(8, (len(images),))
    changed = torch.empty_like(images)
    for symmetry in range(8):
        rows = (chosen == symmetry).nonzero().squeeze(1).to(images.device)
        turned = images[rows].rot90(symmetry % 4, (2, 3))
        changed[rows] = turned.flip(3) if symmetry >= 4 else turned
    return changed
