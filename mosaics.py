"""VAND's mosaics: in its training on MVTec AD some images are replaced by four of their class."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dataset import AnomalyDataset

if TYPE_CHECKING:
    import torch


class MosaicDataset(AnomalyDataset):
    """A data set and, behind its N images, the mosaics that stand for some of them in the epochs of a training.

    In each epoch an image is replaced, with the probability `share`, by a mosaic of 2 x 2 images that are drawn from
    those of its class, with replacement. The draws depend on the seed and the epoch alone: so all mosaics are known
    beforehand, and their features can be computed once and kept, like those of images.

    Args:
        dataset: what the mosaics are made of.
        share, epochs, seed: see above.

    Attributes are those of the data set; its N images come first. And:
        mosaics: the four images of each mosaic.
        replaced: (epochs, N), for each epoch what stands for each image: itself, or the number of a mosaic.
    """

    def __init__(self, dataset: AnomalyDataset, share: float, epochs: int, seed: int) -> None:
        import torch

        vars(self).update(vars(dataset))
        self.base = dataset
        count = len(dataset)
        of_class = {
            name: torch.tensor([i for i, entry in enumerate(dataset.entries) if entry.class_name == name])
            for name in dataset.classes
        }
        self.mosaics: list[tuple[int, ...]] = []
        self.replaced = torch.arange(count).repeat(epochs, 1)
        for epoch in range(epochs):
            stream = torch.Generator().manual_seed(seed * 10_000 + 5_000 + epoch + 1)  # not that of the epoch's order
            chosen = torch.rand(count, generator=stream) < share
            for index in chosen.nonzero().flatten().tolist():
                candidates = of_class[dataset.entries[index].class_name]
                four = candidates[torch.randint(len(candidates), (4,), generator=stream)]
                self.replaced[epoch, index] = count + len(self.mosaics)
                self.mosaics.append(tuple(four.tolist()))
        self.entries = [*dataset.entries, *map(self._entry, self.mosaics)]
        listed = json.dumps([dataset.checksum, self.mosaics])
        self.checksum = hashlib.sha256(listed.encode()).hexdigest()

    def _entry(self, four: tuple[int, ...]) -> object:
        """What the records know of a mosaic: it is anomalous if one of the four is, and called as that one."""
        entries = [self.base.entries[index] for index in four]
        return next((entry for entry in entries if entry.label), replace(entries[0], mask_path=""))

    def image(self, index: int) -> Image.Image:
        """An image, or a mosaic: each of the four at the size of the first, row by row."""
        count = len(self.base)
        if index < count:
            return self.base.image(index)
        images = [self.base.image(each) for each in self.mosaics[index - count]]
        width, height = images[0].size
        mosaic = Image.new("RGB", (2 * width, 2 * height))
        for place, image in enumerate(images):
            same = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
            mosaic.paste(same, (place % 2 * width, place // 2 * height))
        return mosaic

    def mask(self, index: int, size: int | tuple[int, int]) -> np.ndarray:
        """The mask of an image or a mosaic, float32 of 0 and 1; size: S for (S, S), or width and height."""
        count = len(self.base)
        if index < count:
            return self.base.mask(index, size)
        width, height = size if isinstance(size, tuple) else (size, size)
        four = [self.base.mask(each, (width, height)) for each in self.mosaics[index - count]]
        mosaic = np.vstack([np.hstack(four[:2]), np.hstack(four[2:])])
        shrunk = Image.fromarray((mosaic * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
        return (np.asarray(shrunk) > 127).astype(np.float32)


def order_of(dataset: AnomalyDataset, order: torch.Tensor, epoch: int) -> torch.Tensor:
    """An epoch's order of images with the mosaics in their places; the same where there are none."""
    return dataset.replaced[epoch - 1][order] if isinstance(dataset, MosaicDataset) else order
