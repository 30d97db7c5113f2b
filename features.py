"""The seam between the frozen and the learned part: image and patch features, computed once and used in every epoch.

The vision tower is frozen and nothing is augmented, so the features of an image never change. They are kept in memory
or in memory-mapped files under a key of all that they depend on, or computed anew for each batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from AnomalyCLIP_lib import AnomalyCLIP
from dataset import AnomalyDataset
from utils import InputError, write_json

ARRAYS = ("image_features", "patch_features", "masks")
RAM_SHARE = 0.5  # --cache auto keeps features in memory if they take at most this share of what is available
DISK_RESERVE = 1 << 30  # bytes that stay free on the disk of a cache


def encode_one_by_one(model: AnomalyCLIP, images: torch.Tensor, layers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of images (B, 3, S, S): (B, D) and (B, L, 1 + G*G, D), L tapped layers; no gradients.

    On the CPU each image is encoded alone: matrix products round differently for different batch sizes, and features
    must not depend on an image's neighbours if training with and without a cache is to be the same bit for bit.
    """
    chunks = images.split(1) if images.device.type == "cpu" else (images,)
    with torch.no_grad():
        encoded = [model.encode_image(chunk, layers) for chunk in chunks]
    image_features = torch.cat([image_features for image_features, _ in encoded])
    return image_features, torch.cat([torch.stack(patch_features, dim=1) for _, patch_features in encoded])


class Features:
    """Batches of features, masks and labels of a data set, in any order.

    Args:
        model, dataset, layers: what to encode with, what, and which blocks to tap.
        arrays: image_features (N, D), patch_features (N, L, 1 + G*G, D), masks (N, S, S) bool, by name; None: computed
            anew for every batch.
        num_workers: processes that read images when there are no arrays.
    """

    def __init__(
        self,
        model: AnomalyCLIP,
        dataset: AnomalyDataset,
        layers: list[int],
        arrays: dict[str, torch.Tensor] | None = None,
        num_workers: int = 0,
    ) -> None:
        self.model, self.dataset, self.layers = model, dataset, layers
        self.arrays, self.num_workers = arrays, num_workers

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[dict]:
        """Yield the batches of one epoch: the data set's items, with features in place of the image.

        order: (N,) indices. Each batch has image_features (B, D), patch_features (L times (B, 1 + G*G, D), a list),
        mask (B, S, S), label (B,), class_name and image_path (lists); tensors on the model's device, float32.
        """
        chunks = order.split(batch_size)
        if self.arrays is None:
            yield from self._computed([chunk.tolist() for chunk in chunks])
        else:
            yield from map(self._looked_up, chunks)

    def _computed(self, chunks: list[list[int]]) -> Iterator[dict]:
        device = self.model.device
        for batch in DataLoader(self.dataset, batch_sampler=chunks, num_workers=self.num_workers):
            image_features, patch_features = encode_one_by_one(self.model, batch.pop("image").to(device), self.layers)
            batch |= {"mask": batch["mask"].to(device), "label": batch["label"].to(device)}
            yield batch | {"image_features": image_features, "patch_features": list(patch_features.unbind(1))}

    def _looked_up(self, chunk: torch.Tensor) -> dict:
        image_features, patch_features, masks = (
            self.arrays[name][chunk].to(self.model.device, torch.float32) for name in ARRAYS
        )
        entries = [self.dataset.entries[index] for index in chunk.tolist()]
        return {
            "image_features": image_features,
            "patch_features": list(patch_features.unbind(1)),
            "mask": masks,
            "label": torch.tensor([entry.label for entry in entries], device=self.model.device),
            "class_name": [entry.class_name for entry in entries],
            "image_path": [self.dataset.path(entry.image_path) for entry in entries],
        }


def open_features(
    model: AnomalyCLIP,
    dataset: AnomalyDataset,
    settings: dict,
    cache: str = "auto",
    cache_dir: Path = Path("cache"),
    cache_dtype: str = "fp32",
    num_workers: int = 0,
) -> Features:
    """Features of a data set, encoded now, found on disk, or left to be computed batch by batch.

    Args:
        settings: weights_sha256, image_size, features_list, dpam_layer, dpam_mode: with the data set's checksum, its
            files' modification times and the type, the key of the cache.
        cache: "none", "ram", "disk", or "auto": what is on disk already, else memory if that is ample, else disk.
        cache_dtype: "fp32" (training is the same bit for bit as without a cache, on the CPU) or "fp16" (half the size).

    Raises InputError if the disk has no room for the cache.
    """
    layers = settings["features_list"]
    if cache == "none":
        return Features(model, dataset, layers, num_workers=num_workers)
    depends = {key: settings[key] for key in ("weights_sha256", "image_size", "dpam_layer", "dpam_mode")}
    depends |= {"features_list": layers, "data_checksum": dataset.checksum, "dtype": cache_dtype}
    depends["modified"] = modification_times(dataset)
    folder = cache_dir / hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]
    if cache != "ram" and folder.is_dir():
        return Features(model, dataset, layers, read_arrays(folder))

    count, dimension, tokens = len(dataset), model.clip.visual.proj.shape[1], 1 + model.grid**2
    shapes = dict(zip(ARRAYS, ((dimension,), (len(layers), tokens, dimension), (model.image_size,) * 2), strict=True))
    types = dict.fromkeys(ARRAYS, np.dtype({"fp32": "float32", "fp16": "float16"}[cache_dtype])) | {
        "masks": np.dtype(bool)
    }
    size = sum(count * int(np.prod(shapes[name])) * types[name].itemsize for name in ARRAYS)
    if cache == "ram" or (cache == "auto" and size <= RAM_SHARE * psutil.virtual_memory().available):
        arrays = {name: np.empty((count, *shapes[name]), types[name]) for name in ARRAYS}
        fill(arrays, model, dataset, layers, num_workers)
        return Features(model, dataset, layers, {name: torch.from_numpy(array) for name, array in arrays.items()})

    cache_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(cache_dir)
    free = shutil.disk_usage(cache_dir).free
    if size + DISK_RESERVE > free:
        raise InputError(
            f"--cache_dir {cache_dir}: the features take {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "give another folder, --cache_dtype fp16 or --cache none"
        )
    temporary = cache_dir / f"{folder.name}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        arrays = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", types[name], (count, *shapes[name]))
            for name in ARRAYS
        }
        fill(arrays, model, dataset, layers, num_workers)
        for array in arrays.values():
            array.flush()
        write_json(temporary / "key.json", depends)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster: its files are the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Features(model, dataset, layers, read_arrays(folder))


def modification_times(dataset: AnomalyDataset) -> str:
    """Digest of when the files changed: the checksum does not see a file rewritten with the same number of bytes."""
    files = [path for entry in dataset.entries for path in (entry.image_path, entry.mask_path) if path]
    times = [os.stat(dataset.path(path)).st_mtime_ns for path in files]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()


def fill(
    arrays: dict[str, np.ndarray], model: AnomalyCLIP, dataset: AnomalyDataset, layers: list[int], num_workers: int
) -> None:
    """Encode the whole data set into `arrays`."""
    position = 0
    loader = DataLoader(dataset, batch_size=8, num_workers=num_workers)
    with tqdm(total=len(dataset), desc="features", unit="image", leave=False) as progress:
        for batch in loader:
            image_features, patch_features = encode_one_by_one(model, batch["image"].to(model.device), layers)
            part = slice(position, position + len(image_features))
            arrays["image_features"][part] = image_features.float().cpu().numpy()
            arrays["patch_features"][part] = patch_features.float().cpu().numpy()
            arrays["masks"][part] = batch["mask"].numpy() > 0
            position = part.stop
            progress.update(len(image_features))


def read_arrays(folder: Path) -> dict[str, torch.Tensor]:
    """Memory-mapped tensors of a finished cache."""
    return {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ARRAYS}


def remove_leftovers(cache_dir: Path) -> None:
    """Delete what killed writers left: temporary folders whose process is gone."""
    for folder in cache_dir.glob("*.*.tmp"):
        process = folder.name.split(".")[1]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
