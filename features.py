"""The seam between the frozen and the learned part: features of images, computed once and used in every epoch.

The vision tower is frozen and nothing is augmented, so the features of an image never change. They are kept in memory
or in memory-mapped files under a key of all that they depend on, or computed anew for each batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import parallel
from dataset import AnomalyDataset
from methods._base import Base
from utils import InputError, one_line, write_json

RAM_SHARE = 0.5  # --cache auto keeps features in memory if they take at most this share of what is available
DISK_RESERVE = 1 << 30  # bytes that stay free on the disk of a cache
ENCODING_BATCH = 8  # images


def encode(method: Base, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of images (B, 3, S, S), uint8 or normalised: each (B, ...), float32; no gradients.

    On the CPU each image is encoded alone: matrix products round differently for different batch sizes, and features
    must not depend on an image's neighbours if training with and without a cache is to be the same bit for bit.
    """
    images = method.model.normalize(images)
    chunks = images.split(1) if images.device.type == "cpu" else (images,)
    try:
        with torch.no_grad(), method.model.autocast():
            encoded = [method.encode(chunk) for chunk in chunks]
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InputError(f"--compile does not work here ({one_line(error)}); leave it out") from None
        raise
    return {name: torch.cat([features[name] for features in encoded]).float() for name in encoded[0]}


def predict(method: Base, features: dict[str, torch.Tensor], class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (B,) and maps (B, S, S) of images of a class from their features; on the CPU one by one, as `encode`."""
    batch = len(next(iter(features.values())))
    size = 1 if method.model.device.type == "cpu" else batch
    with torch.no_grad():
        parts = [
            method.predict({name: values[start : start + size] for name, values in features.items()}, class_name)
            for start in range(0, batch, size)
        ]
    return torch.cat([scores for scores, _ in parts]), torch.cat([maps for _, maps in parts])


class Features:
    """Batches of features, masks and labels of a data set, in any order.

    Args:
        method, dataset: what to encode with, and what.
        names: the features that are wanted; None: all.
        arrays: by name, the features (N, ...) and "mask" (N, S, S) bool; None: computed anew for every batch.
        num_workers: processes that read images when there are no arrays.
    """

    def __init__(
        self,
        method: Base,
        dataset: AnomalyDataset,
        names: tuple[str, ...] | None = None,
        arrays: dict[str, torch.Tensor] | None = None,
        num_workers: int = 0,
    ) -> None:
        self.method, self.dataset, self.names = method, dataset, names
        self.arrays, self.num_workers = arrays, num_workers

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[dict]:
        """This process's share of the batches of images order[0], order[1], ..

        Each batch is a dict: features (by name, (B, ...) float32), mask (B, S, S) float32 and label (B,) on the model's
        device; class_name and image_path (lists); rows: where the images stand in `order`, empty if they are there for
        company only; weight: see `parallel.own_share`.
        """
        chunks = [parallel.own_share(rows) for rows in torch.arange(len(order)).split(batch_size)]
        if self.arrays is None:
            batches = DataLoader(
                self.dataset,
                batch_sampler=[order[rows].tolist() for rows, _ in chunks],
                num_workers=self.num_workers,
            )
            batches = map(self._computed, batches)
        else:
            batches = (self._looked_up(order[rows]) for rows, _ in chunks)
        for batch, (rows, weight) in zip(batches, chunks, strict=True):
            yield batch | {"rows": rows if weight else rows[:0], "weight": weight}

    def _computed(self, batch: dict) -> dict:
        device = self.method.model.device
        features = encode(self.method, batch.pop("image").to(device))
        features = {name: features[name] for name in self.names or features}
        return batch | {"features": features, "mask": batch["mask"].to(device), "label": batch["label"].to(device)}

    def _looked_up(self, chunk: torch.Tensor) -> dict:
        device = self.method.model.device
        values = {name: array[chunk].to(device, torch.float32) for name, array in self.arrays.items()}
        entries = [self.dataset.entries[index] for index in chunk.tolist()]
        return {
            "mask": values.pop("mask"),
            "features": values,
            "label": torch.tensor([entry.label for entry in entries], device=device),
            "class_name": [entry.class_name for entry in entries],
            "image_path": [self.dataset.path(entry.image_path) for entry in entries],
        }


def open_features(
    method: Base,
    dataset: AnomalyDataset,
    weights_sha256: str,
    cache: str = "auto",
    cache_dir: Path = Path("cache"),
    cache_dtype: str = "fp32",
    num_workers: int = 0,
    names: tuple[str, ...] | None = None,
) -> Features:
    """Features of a data set, encoded now, found on disk, or left to be computed batch by batch.

    Args:
        weights_sha256: of the frozen weights: with the method's `encoding`, the precision, the data set's checksum, its
            files' modification times, the type and `names`, the key of the cache.
        cache: "none", "ram", "disk", or "auto": what is on disk already, else memory if that is ample, else disk.
        cache_dtype: "fp32" (training is the same bit for bit as without a cache, on the CPU) or "fp16" (half the size).
        names: the features that are wanted; None: all.

    Under torchrun the processes share the encoding; the first on each machine writes its disk cache, in memory each
    holds all. Raises InputError if the disk has no room for the cache.
    """
    if cache == "none":
        return Features(method, dataset, names, num_workers=num_workers)
    depends = method.encoding() | {"weights_sha256": weights_sha256, "precision": method.model.precision}
    depends |= {"data_checksum": dataset.checksum, "modified": modification_times(dataset)}
    depends |= {"dtype": cache_dtype, "features": names and list(names)}
    folder = cache_dir / hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]
    if cache != "ram" and all(parallel.gather(folder.is_dir())):
        return Features(method, dataset, names, read_arrays(folder))

    side = method.model.image_size
    probe = encode(method, torch.zeros(1, 3, side, side, device=method.model.device))
    element = np.dtype({"fp32": "float32", "fp16": "float16"}[cache_dtype])
    layout = {name: (element, (len(dataset), *probe[name].shape[1:])) for name in names or probe}
    layout["mask"] = (np.dtype(bool), (len(dataset), side, side))
    size = sum(kind.itemsize * int(np.prod(shape, dtype=np.int64)) for kind, shape in layout.values())
    room = RAM_SHARE * psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if cache == "ram" or (cache == "auto" and parallel.broadcast(size <= room)):
        arrays = {name: np.empty(shape, kind) for name, (kind, shape) in layout.items()}
        fill(arrays, method, dataset, num_workers, names)
        return Features(method, dataset, names, {name: torch.from_numpy(array) for name, array in arrays.items()})

    writer = parallel.is_first_here() and not folder.is_dir()
    temporary = cache_dir / f"{folder.name}.{platform.node()}.{os.getpid()}.tmp"
    if writer:
        prepare(cache_dir, size)
        temporary.mkdir()
    try:
        arrays = {}
        if writer:
            arrays = {
                name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", kind, shape)
                for name, (kind, shape) in layout.items()
            }
        fill(arrays, method, dataset, num_workers, names)
        if writer:
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
    parallel.gather(None)  # nobody reads before all machines have written
    return Features(method, dataset, names, read_arrays(folder))


def modification_times(dataset: AnomalyDataset) -> str:
    """Digest of when the files changed: the checksum does not see a file rewritten with the same number of bytes."""
    files = [path for entry in dataset.entries for path in (entry.image_path, entry.mask_path) if path]
    times = [os.stat(dataset.path(path)).st_mtime_ns for path in files]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()


def fill(
    arrays: dict[str, np.ndarray],
    method: Base,
    dataset: AnomalyDataset,
    num_workers: int,
    names: tuple[str, ...] | None,
) -> None:
    """Encode the whole data set, the processes together, into `arrays` (empty: this process keeps nothing)."""
    source = Features(method, dataset, names, num_workers=num_workers)
    batches = source.batches(torch.arange(len(dataset)), ENCODING_BATCH * parallel.world_size())
    with tqdm(total=len(dataset), desc="features", unit="image", leave=False, disable=not parallel.is_main()) as bar:
        for batch in batches:
            values = {name: value.cpu().numpy() for name, value in batch["features"].items()}
            values["mask"] = batch["mask"].cpu().numpy() > 0
            for rows, encoded in parallel.gather((batch["rows"].numpy(), values)):
                for name, array in arrays.items():
                    array[rows] = encoded[name][: len(rows)]
                bar.update(len(rows))


def read_arrays(folder: Path) -> dict[str, torch.Tensor]:
    """Memory-mapped tensors of a finished cache."""
    return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in sorted(folder.glob("*.npy"))}


def prepare(cache_dir: Path, size: int) -> None:
    """Make the folder of the caches, delete what killed writers left, and see that `size` bytes fit."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    for folder in cache_dir.glob(f"*.{platform.node()}.*.tmp"):
        process = folder.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(cache_dir).free
    if size + DISK_RESERVE > free:
        raise InputError(
            f"--cache_dir {cache_dir}: the features take {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "give another folder, --cache_dtype fp16 or --cache none"
        )
