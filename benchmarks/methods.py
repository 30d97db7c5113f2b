"""What each method learns and costs: parameters, seconds an image and a step of training, size of the cached features.

ViT-L/14@336 at 518 px (WinCLIP: ViT-B/16+ at 240 px), generated weights, float32 on the CPU. Sizes and epochs of MVTec
AD are worked out from one image, one step, and the 1725 images of its test split.

python benchmarks/methods.py                   # full size; about ten minutes
python benchmarks/methods.py --only af_clip    # some of them
python benchmarks/methods.py --small           # small towers, about a minute
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from common import alternate, finish, generated_model, matrix_product_rate, peak_memory, windows_model

import methods
from utils import run_cli

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from methods._base import Base

IMAGES = 1725  # of MVTec AD's test split
CLASSES = [f"object {number}" for number in range(15)]
VARIANTS = {"mrad_tf": ("mrad", {"training_free": True}), "mrad_ft": ("mrad", {"training_free": False})}


def main() -> None:
    variants = {name: (name, {}) for name in methods.names() if name != "mrad"} | VARIANTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=variants, default=list(variants), help="these methods alone")
    parser.add_argument("--small", action="store_true", help="towers of width 256, 252 px")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each part; the best counts")
    args = parser.parse_args()

    from tabulate import tabulate
    from tqdm import tqdm

    text = {"width": 256, "heads": 4, "layers": 12} if args.small else {"width": 768, "heads": 12, "layers": 12}
    model, _ = generated_model(args.small, text)
    rate, rows = matrix_product_rate(), []
    for name in tqdm(args.only, desc="methods", unit="method", leave=False):
        rows.append({"method": name, **measure(*variants[name], model, args.small, args.rounds)})
    print(tabulate([[show(value) for value in row.values()] for row in rows], headers=rows[0].keys(), tablefmt="pipe"))
    finish({"methods": rows, "peak_memory_mb": peak_memory(), "matrix_product_gflops": rate / 1e9})


def measure(name: str, changes: dict, model, small: bool, rounds: int) -> dict[str, float | None]:
    """The figures of a method; None where it trains nothing."""
    import torch

    import features
    from AnomalyCLIP_lib import AnomalyCLIP

    chosen, flags = methods.method_class(name), methods.flags(name)
    settings = flags["SETTINGS"] | flags["TRAINING"] | flags["TESTING"] | changes
    if name == "anomalyclip":
        settings["features_list"] = [model.num_layers]  # as in the paper's tables
    if name == "winclip":
        model, _ = windows_model(small, {"width": 640, "heads": 10, "layers": 12})
    elif "dpam_layer" not in settings:
        model = AnomalyCLIP(model.clip, model.tokenizer, model.image_size, dpam_layer=1)
    method = chosen(model, chosen.complete(settings, model))
    images = torch.randn(1, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))

    encoding, encoded = best_time(lambda: features.encode(method, images), rounds)
    if chosen.MEMORY:
        method.set_memory(memory_of(method, encoded))
    features.set_classes(method, CLASSES)
    sigma = settings["sigma"]
    predicting, _ = best_time(lambda: features.predict(method, encoded, CLASSES[0], sigma), rounds)
    read = {each: encoded[each] for each in chosen.TRAINING_FEATURES or encoded}
    cached = {"training": size_of(read), "test": size_of(encoded)}
    mask = model.image_size**2  # bytes; a cache holds masks, too
    learned = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    epochs, step, epoch = None, None, None
    if learned:
        batch, epochs = settings["batch_size"], settings["epoch"]
        step, _ = best_time(training_step(method, read, batch), rounds)
        epoch = step * -(-IMAGES // batch)
    return {
        "parameters": learned,
        "encode s": encoding,
        "predict s": predicting,
        "step s": step,
        "epoch s": epoch,
        "epochs": epochs,
        "MB an image": cached["test"] / 1e6,
        "MVTec AD, training GB": (cached["training"] + mask) * IMAGES / 1e9 if chosen.STATE else None,
        "MVTec AD, test GB": (cached["test"] + mask) * IMAGES / 1e9,
    }


def best_time(path: Callable[[], object], rounds: int) -> tuple[float, object]:
    """Best seconds of `rounds` runs and a warm-up, and what the last returned."""
    seconds, results = alternate({"": path}, 1 + rounds)
    return seconds[""], results[""]


def size_of(encoded: dict[str, torch.Tensor]) -> int:
    """Bytes of features in float32."""
    return sum(value.numel() * 4 for value in encoded.values())


def varied(encoded: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Features of several images that differ, from those of one."""
    import torch

    stream = torch.Generator().manual_seed(1)
    return {
        name: value + 0.3 * value.std() * torch.randn(count, *value.shape[1:], generator=stream)
        for name, value in encoded.items()
    }


def labels_and_masks(method: Base, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every second image is anomalous, in a sixteenth of its pixels."""
    import torch

    size = method.model.image_size
    labels, masks = torch.arange(count) % 2, torch.zeros(count, size, size)
    masks[1::2, size // 4 : size // 2, size // 4 : size // 2] = 1
    return labels, masks


def memory_of(method: Base, encoded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Summaries of as many images as MVTec AD has, made from a few."""
    import torch

    with torch.no_grad():
        few = method.summarise(varied(encoded, 8), *labels_and_masks(method, 8))
    return {name: value.repeat(-(-IMAGES // 8), *[1] * (value.ndim - 1))[:IMAGES] for name, value in few.items()}


def training_step(method: Base, encoded: dict[str, torch.Tensor], batch: int):
    """A step of training with this many images, to be called."""
    values, (labels, masks) = varied(encoded, batch), labels_and_masks(method, batch)
    names = [CLASSES[number % len(CLASSES)] for number in range(batch)]
    optimizer = method.optimizer()

    def step() -> float:
        loss = sum(method.losses(values, labels, masks, names).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def show(value: float | str | None) -> str:
    """A value of the table; '-' where there is none."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_cli(main)
