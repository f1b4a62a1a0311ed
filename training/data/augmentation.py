"""Augmentation of training images."""

from collections.abc import Callable

import torch
from torch import Tensor

from training.errors import RecipeError
from training.recipe import AugmentRecipe

Augmentation = Callable[[Tensor], Tensor]


def build_augmentation(recipe: AugmentRecipe) -> Augmentation:
    """Return a random map of images, float32 ``[n, channels, height, width]``, that draws from torch's generator.

    Pixels from outside the image are zero.
    """
    changes: list[Augmentation] = []
    if recipe.rotate or recipe.shift or recipe.scale or recipe.shear or recipe.flip or recipe.crop:
        import kornia.augmentation as K  # imported here, because it takes a second and many recipes do without it
    if recipe.rotate or recipe.shift or recipe.scale or recipe.shear:
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
        changes.append(K.RandomHorizontalFlip(p=0.5))
    if recipe.crop:
        # The crop has the images' own size, which is known only when they arrive.
        changes.append(lambda images: K.RandomCrop(tuple(images.shape[2:]), padding=recipe.crop)(images))

    if recipe.symmetries:
        changes.append(_symmetries)

    def augment(images: Tensor) -> Tensor:
        for change in changes:
            images = change(images)
        return images

    return augment


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
