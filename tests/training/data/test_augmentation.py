"""Augmentation: each image changes within its bounds, independently."""

import pytest
import torch

from training.data.augmentation import build_augmentation
from training.errors import RecipeError
from training.recipe import AugmentRecipe


def centre_of_mass(images: torch.Tensor) -> torch.Tensor:
    grid = torch.arange(images.shape[-1], dtype=images.dtype)
    mass = images.sum((1, 2, 3))
    return torch.stack([(images.sum((1, 2)) * grid).sum(1) / mass, (images.sum((1, 3)) * grid).sum(1) / mass], dim=1)


@pytest.fixture
def spots() -> torch.Tensor:
    images = torch.zeros(200, 1, 21, 21)
    images[:, :, 9:12, 9:12] = 100.0
    return images


def test_without_augmentation_nothing_changes(spots: torch.Tensor) -> None:
    assert build_augmentation(AugmentRecipe())(spots) is spots


def test_shifts_stay_within_their_bound_and_differ_from_image_to_image(spots: torch.Tensor) -> None:
    torch.manual_seed(0)
    moved = centre_of_mass(build_augmentation(AugmentRecipe(shift=0.1))(spots)) - 10
    assert moved.abs().max() <= 0.1 * 21 + 0.05
    assert moved.abs().max() > 1.5
    assert moved.std() > 0.5


def test_rotation_and_scale_leave_the_centre_where_it_is(spots: torch.Tensor) -> None:
    torch.manual_seed(0)
    changed = build_augmentation(AugmentRecipe(rotate=20, scale=0.3))(spots)
    assert (centre_of_mass(changed) - 10).abs().max() < 0.1
    mass = changed.sum((1, 2, 3)) / spots.sum((1, 2, 3))
    assert mass.min() < 0.75
    assert mass.max() > 1.3
    assert (mass.min() > 0.45) & (mass.max() < 1.75)


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others_as_they_are() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 3, 6, 5)
    changed = build_augmentation(AugmentRecipe(flip=True))(images)
    mirrored = (changed == images.flip(3)).flatten(1).all(1)
    untouched = (changed == images).flatten(1).all(1)
    assert bool((mirrored ^ untouched).all())
    assert 150 < int(mirrored.sum()) < 250


def test_a_crop_shifts_each_image_by_whole_pixels_within_its_bound(spots: torch.Tensor) -> None:
    torch.manual_seed(0)
    changed = build_augmentation(AugmentRecipe(crop=3))(spots)
    assert changed.shape == spots.shape
    assert sorted(changed.unique().tolist()) == [0.0, 100.0]
    moved = centre_of_mass(changed) - 10
    assert (moved - moved.round()).abs().max() < 1e-4
    assert {int(value) for value in moved.round().flatten().tolist()} == set(range(-3, 4))


def test_symmetries_are_the_eight_of_a_square_about_equally_often() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 3, 5, 5)
    changed = build_augmentation(AugmentRecipe(symmetries=True))(images)
    eight = [version.rot90(turns, (2, 3)) for version in (images, images.flip(3)) for turns in range(4)]
    is_one = torch.stack([(changed == one).flatten(1).all(1) for one in eight])
    assert bool((is_one.sum(0) == 1).all())
    assert 30 < int(is_one.sum(1).min()) <= int(is_one.sum(1).max()) < 75


def test_symmetries_need_square_images() -> None:
    with pytest.raises(RecipeError, match=r"augment.symmetries: must be false for images that are not square \(got 4x5\)"):
        build_augmentation(AugmentRecipe(symmetries=True))(torch.rand(2, 1, 4, 5))
