"""Augmentation of training images."""

from collections.abc import Callable

from torch import Tensor

from training.recipe import AugmentRecipe

Augmentation = Callable[[Tensor], Tensor]


def build_augmentation(recipe: AugmentRecipe) -> Augmentation:
    """Return a map from images float32 ``[n, channels, height, width]`` to changed ones, random by torch's generator.

    What comes into the picture from outside is zero.
    """
    if not (recipe.rotate or recipe.shift or recipe.scale or recipe.shear):
        return lambda images: images
    import kornia.augmentation as K  # here, because it takes a second and many recipes do without

    affine = K.RandomAffine(
        degrees=recipe.rotate,
        translate=(recipe.shift, recipe.shift),
        scale=(1 - recipe.scale, 1 + recipe.scale),
        shear=recipe.shear,
        p=1.0,
    )
    return lambda images: affine(images)
