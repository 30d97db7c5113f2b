"""The seam between the frozen and the learned part: features of images, computed once and used in every epoch.

The vision tower is frozen and nothing is augmented, so the features of an image never change. They are kept in memory
or in memory-mapped files under a key of all that they depend on, or computed anew for each batch.

Methods are called through `encode`, `set_classes` and `predict`, which see to what is the same for all of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

import parallel
from AnomalyCLIP_lib.errors import one_line
from AnomalyCLIP_lib.similarity import full_size
from dataset import AnomalyDataset
from methods._base import Base
from utils import INTERRUPTION, LOGGER, InputError, processor_features, shown, write_json

# More workers than cores are the user's choice; torch would say so in the middle of a progress bar.
warnings.filterwarnings("ignore", "This DataLoader will create", module=r"torch\.utils\.data")

RAM_SHARE = 0.5  # --cache auto keeps features in memory if they take at most this share of what is available
DISK_RESERVE = 1 << 30  # bytes that stay free on the disk of a cache
ENCODING_BATCH = 8  # images
DTYPES = {"fp32": np.dtype("float32"), "fp16": np.dtype("float16")}

Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]  # type and shape of each array of a cache, by name


@torch.no_grad()
def encode(method: Base, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of images (B, 3, S, S), uint8 or normalised: each (B, ...), float32; no gradients.

    On the CPU each image is encoded alone: matrix products round differently for different batch sizes, and features
    must not depend on an image's neighbours if training with and without a cache is to be the same bit for bit. Only in
    bf16 on a processor with AMX two go together, which takes up to a quarter less time.
    """
    pairs = method.model.precision == "bf16" and "amx_bf16" in processor_features()
    chunks = images.split(2 if pairs else 1) if images.device.type == "cpu" else (images,)
    try:
        encoded = [method.model.run_frozen(method.encode, chunk) for chunk in chunks]
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InputError(f"--compile does not work here ({one_line(error)}); leave it out") from None
        raise
    return {name: torch.cat([features[name] for features in encoded]) for name in encoded[0]}


@torch.no_grad()
def set_classes(method: Base, class_names: list[str]) -> None:
    """Let a method compute what depends on the class names alone; no gradients."""
    method.set_classes(class_names)


@torch.no_grad()
def predict(
    method: Base, features: dict[str, torch.Tensor], class_name: str, sigma: float = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (B,) and smoothed maps (B, S, S) of images of a class from their features, on the model's device.

    sigma: width of the Gaussian filter in pixels. On the CPU the images are taken one by one, as in `encode`.
    """
    batch = len(next(iter(features.values())))
    chunk = 1 if method.model.device.type == "cpu" else batch
    parts = [
        method.predict({name: values[start : start + chunk] for name, values in features.items()}, class_name)
        for start in range(0, batch, chunk)
    ]
    maps = [full_size(maps, method.model.image_size, sigma) for _, maps in parts]
    scores = [method.image_scores(scores, smoothed) for (scores, _), smoothed in zip(parts, maps, strict=True)]
    return torch.cat(scores), torch.cat(maps)


def collate(items: list[dict]) -> dict:
    """A batch of items of a data set; its masks are bool, for they may have to pass through shared memory."""
    return default_collate([item | {"mask": item["mask"] > 0} for item in items])


class FeatureStore:
    """Batches of features, masks and labels of a data set, in any order.

    Args:
        method, dataset: what to encode with, and what.
        wanted: names of the features that batches hold; None: all.
        arrays: by name, the features (N, ...) and "mask" (N, S, S) bool; None: computed anew for every batch.
        num_workers: processes that read images when there are no arrays.
    """

    def __init__(
        self,
        method: Base,
        dataset: AnomalyDataset,
        wanted: tuple[str, ...] | None = None,
        arrays: dict[str, torch.Tensor] | None = None,
        num_workers: int = 0,
    ) -> None:
        self.method, self.dataset, self.wanted = method, dataset, wanted
        self.arrays, self.num_workers = arrays, num_workers

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[dict]:
        """This process's share of the batches of images order[0], order[1], ...

        Each batch is a dict: features (by name, (B, ...) float32), mask (B, S, S) float32 and label (B,) on the model's
        device; class_name and image_path (lists); rows: where the images stand in `order`, empty if this process only
        keeps step; weight: see `parallel.own_share`.
        """
        chunks = [parallel.own_share(rows) for rows in torch.arange(len(order)).split(batch_size)]
        if self.arrays is None:
            batches = DataLoader(
                self.dataset,
                batch_sampler=[order[rows].tolist() for rows, _ in chunks],
                num_workers=self.num_workers,
                collate_fn=collate,
            )
            batches = map(self._computed, batches)
        else:
            batches = (self._looked_up(order[rows]) for rows, _ in chunks)
        for batch, (rows, weight) in zip(batches, chunks, strict=True):
            INTERRUPTION.check()
            yield batch | {"rows": rows if weight else rows[:0], "weight": weight}

    def _computed(self, batch: dict) -> dict:
        device = self.method.model.device
        features = encode(self.method, batch.pop("image").to(device))
        features = {name: features[name] for name in self.wanted or features}
        mask = batch["mask"].to(device).float()
        return batch | {"features": features, "mask": mask, "label": batch["label"].to(device)}

    def _looked_up(self, indices: torch.Tensor) -> dict:
        device = self.method.model.device
        values = {name: array[indices].to(device, torch.float32) for name, array in self.arrays.items()}
        entries = [self.dataset.entries[index] for index in indices.tolist()]
        return {
            "mask": values.pop("mask"),
            "features": values,
            "label": torch.tensor([entry.label for entry in entries], device=device),
            "class_name": [entry.class_name for entry in entries],
            "image_path": [self.dataset.path(entry.image_path) for entry in entries],
        }

    def mask_shares(self) -> dict[str, float]:
        """How much of each anomalous image its mask marks, by the image's path, at the model's input size."""
        anomalous = [index for index, entry in enumerate(self.dataset.entries) if entry.label == 1]
        shares = {}
        with tqdm(anomalous, desc="masks", unit="mask", leave=False, delay=1) as progress:
            for index in progress:
                if self.arrays is None:
                    mask = self.dataset.mask(index, self.method.model.image_size)
                else:
                    mask = self.arrays["mask"][index]
                shares.setdefault(self.dataset.entries[index].image_path, float(np.asarray(mask).mean()))
        return shares


@torch.no_grad()
def remember(method: Base, store: FeatureStore, batch_size: int) -> None:
    """Show a method every image of its training data, the processes together, for its memory; no gradients."""
    count, numbers, parts = len(store.dataset), [], []
    batches = store.batches(torch.arange(count), batch_size)
    with tqdm(total=count, desc="memory", unit="image", leave=False, disable=not parallel.is_main()) as progress:
        for batch in batches:
            masks = batch["mask"] if store.dataset.has_masks else None
            summaries = method.summarise(batch["features"], batch["label"], masks)
            own = {name: value[: len(batch["rows"])].cpu() for name, value in summaries.items()}
            for rows, share in parallel.gather((batch["rows"], own)):
                numbers.append(rows)
                parts.append(share)
                progress.update(len(rows))
    order = torch.cat(numbers).argsort()
    method.set_memory({name: torch.cat([part[name] for part in parts])[order] for name in parts[0]})


def open_store(
    method: Base,
    dataset: AnomalyDataset,
    cache: str = "auto",
    cache_dir: Path = Path("cache"),
    cache_dtype: str = "fp32",
    num_workers: int = 0,
    wanted: tuple[str, ...] | None = None,
) -> FeatureStore:
    """Features of a data set: encoded now, found on disk, or left to be computed batch by batch.

    Args:
        cache: "none", "ram", "disk", or "auto": what is on disk already, else memory if that is ample, else disk.
        cache_dtype: "fp32" (training is the same bit for bit as without a cache, on the CPU) or "fp16" (half the size).
        num_workers: processes that read images.
        wanted: names of the features that are kept; None: all.

    Under torchrun the processes share the encoding; the first on each machine writes its disk cache, in memory each
    holds all. Raises InputError if the disk has no room for the cache.
    """
    source = FeatureStore(method, dataset, wanted, num_workers=num_workers)
    if cache == "none":
        return source
    key = cache_key(method, dataset, cache_dtype, wanted)
    folder = cache_dir / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    found = None if cache == "ram" else read_arrays(folder, key)
    if all(parallel.gather(found is not None)):
        return FeatureStore(method, dataset, wanted, found)

    layout = array_layout(method, dataset, DTYPES[cache_dtype], wanted)
    if cache == "ram" or (cache == "auto" and parallel.broadcast(fits_in_memory(layout))):
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in layout.items()}
        fill(arrays, source)
        return FeatureStore(method, dataset, wanted, {name: torch.from_numpy(array) for name, array in arrays.items()})

    size = size_in_bytes(layout)
    logging.getLogger(LOGGER).info(
        "features are kept in %s: %.1f GB, %.1f MB an image%s",
        *(cache_dir, size / 1e9, size / 1e6 / len(dataset)),
        "; --cache_dtype fp16 takes half" if cache_dtype == "fp32" else "",
    )
    if parallel.is_first_here() and found is None:
        write_cache(folder, key, layout, source)
    else:
        fill({}, source)
    parallel.barrier()  # nobody reads before all machines have written
    return FeatureStore(method, dataset, wanted, read_arrays(folder, key))


def cache_key(method: Base, dataset: AnomalyDataset, cache_dtype: str, wanted: tuple[str, ...] | None) -> dict:
    """All that the arrays of a cache depend on."""
    return method.cache_key() | {
        "weights_sha256": method.model.weights_sha256,
        "precision": method.model.precision,
        "data_checksum": dataset.checksum,
        "released": dataset.released,
        "modified": modification_digest(dataset),
        "dtype": cache_dtype,
        "features": wanted and list(wanted),
    }


def modification_digest(dataset: AnomalyDataset) -> str:
    """Digest of when the files changed: the checksum does not see a file rewritten with the same number of bytes."""
    files = [path for entry in dataset.entries for path in (entry.image_path, entry.mask_path) if path]
    times = [os.stat(dataset.path(path)).st_mtime_ns for path in files]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()


def array_layout(method: Base, dataset: AnomalyDataset, dtype: np.dtype, wanted: tuple[str, ...] | None) -> Layout:
    """Types and shapes of the arrays that hold a data set's features and masks, known from one encoded image."""
    image_size, count = method.model.image_size, len(dataset)
    probe = encode(method, torch.zeros(1, 3, image_size, image_size, device=method.model.device))
    layout = {name: (dtype, (count, *probe[name].shape[1:])) for name in wanted or probe}
    return layout | {"mask": (np.dtype(bool), (count, image_size, image_size))}


def size_in_bytes(layout: Layout) -> int:
    """What the arrays take together."""
    return sum(dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for dtype, shape in layout.values())


def fits_in_memory(layout: Layout) -> bool:
    """Whether every process on this machine can hold the arrays with memory to spare."""
    available = psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return size_in_bytes(layout) <= RAM_SHARE * available


def fill(arrays: dict[str, np.ndarray], source: FeatureStore) -> None:
    """Encode the whole data set, the processes together, into `arrays` (empty: this process keeps nothing)."""
    count = len(source.dataset)
    batches = source.batches(torch.arange(count), ENCODING_BATCH * parallel.world_size())
    with tqdm(total=count, desc="features", unit="image", leave=False, disable=not parallel.is_main()) as progress:
        for batch in batches:
            values = {name: value.cpu().numpy() for name, value in batch["features"].items()}
            values["mask"] = batch["mask"].cpu().numpy() > 0
            for rows, encoded in parallel.gather((batch["rows"].numpy(), values)):
                for name, array in arrays.items():
                    array[rows] = encoded[name][: len(rows)]
                progress.update(len(rows))


def write_cache(folder: Path, key: dict, layout: Layout, source: FeatureStore) -> None:
    """Encode the data set into a folder of memory-mapped arrays, which gets its name when it is complete."""
    make_room(folder.parent, size_in_bytes(layout))
    shutil.rmtree(folder, ignore_errors=True)  # if it is there, it is damaged
    temporary = folder.with_name(f"{folder.name}.{platform.node()}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        arrays = {name: make_array(temporary / f"{name}.npy", *kind) for name, kind in layout.items()}
        fill(arrays, source)
        for array in arrays.values():
            array.flush()
        kinds = {name: [dtype.str, list(shape)] for name, (dtype, shape) in layout.items()}
        write_json(temporary / "key.json", {"key": key, "arrays": kinds})
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster: its files are the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A new memory-mapped array, its room on the disk taken: writing to it would end the process on a full disk."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def read_arrays(folder: Path, key: dict) -> dict[str, torch.Tensor] | None:
    """Memory-mapped tensors of a finished cache; None if there is none or it is damaged, and has to be made anew."""
    try:
        record = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        if record["key"] != json.loads(json.dumps(key)):
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in record["arrays"]}
        kinds = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} if kinds == record["arrays"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, EOFError):
        return None


def make_room(cache_dir: Path, size: int) -> None:
    """Make the folder of the caches, delete what killed writers left, and see that `size` bytes fit."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir):
            pass
    except OSError as error:
        raise InputError(
            f"--cache_dir {shown(cache_dir)} cannot be written ({error.strerror}); give another folder"
        ) from None
    for folder in cache_dir.glob(f"*.{platform.node()}.*.tmp"):
        process = folder.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(cache_dir).free
    if size + DISK_RESERVE > free:
        raise InputError(
            f"--cache_dir {cache_dir}: the features take {size / 1e9:.1f} GB, {DISK_RESERVE / 1e9:.1f} GB are to stay "
            f"free, and {free / 1e9:.1f} GB are; give another folder, --cache_dtype fp16 or --cache none"
        )
