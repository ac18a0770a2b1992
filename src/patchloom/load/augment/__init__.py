"""Augmentation: patches and what belongs to them moved alike, by draws that have an address."""

from patchloom.load.augment.augmentation import Augment
from patchloom.load.augment.chain import Chain
from patchloom.load.augment.random_transform import (
    image_random_transform,
    image_stack_random_transform,
)

__all__ = ["Augment", "Chain", "image_random_transform", "image_stack_random_transform"]
