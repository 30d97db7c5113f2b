"""Cost of a training: the plain procedure encodes every image in each epoch, features are computed once here.

ViT-L/14@336 at 518 px, generated weights, float32 on the CPU; 15 epochs over the 1725 images of MVTec AD's test split,
put together from the measured times of one image and of one step of 8 images.

python benchmarks/training.py            # full size; about two minutes
python benchmarks/training.py --small    # small towers, under a minute
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from common import alternate, finish, generated_model, matrix_product_rate, peak_memory

if TYPE_CHECKING:
    import torch

    from methods.anomalyclip import Method

IMAGES, EPOCHS, BATCH = 1725, 15, 8
STEPS = -(-IMAGES // BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="towers of width 256, 252 px")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each path; the best counts")
    args = parser.parse_args()

    import torch
    from plain import encode

    import features
    import methods
    from methods.anomalyclip import Method
    from prompt_ensemble import PromptLearner

    text = {"width": 256, "heads": 4, "layers": 12} if args.small else {"width": 768, "heads": 12, "layers": 12}
    model, vision = generated_model(args.small, text)
    image_size, dpam_layer, tapped = model.image_size, model.dpam_layer, [vision["layers"]]
    flags = methods.flags("anomalyclip")
    settings = flags["SETTINGS"] | flags["TRAINING"] | {"features_list": tapped}
    method = Method(model, Method.complete(settings, model))
    plain_learner = PromptLearner(model)
    plain_learner.load_state_dict(method.learner.state_dict())
    image = torch.randn(1, 3, image_size, image_size)
    rate = matrix_product_rate()

    with torch.no_grad():
        encoding = {
            "plain": lambda: encode(model.clip, image, tapped, dpam_layer),
            "ours": lambda: features.encode(method, image),
        }
        alternate(encoding, rounds=1)  # warm-up
        image_seconds, encoded = alternate(encoding, args.rounds)
    feature_error = max(
        (encoded["plain"][0] - encoded["ours"]["image_features"]).abs().max().item(),
        (encoded["plain"][1][0] - encoded["ours"]["patch_features"][:, 0]).abs().max().item(),
    )

    with tempfile.TemporaryDirectory() as folder:
        step_seconds, losses, size = time_steps(method, plain_learner, encoded["ours"], Path(folder), args.rounds)
    loss_errors = [abs(one - other) / one for one, other in zip(losses["plain"], losses["ours"], strict=True)]

    plain_total = EPOCHS * (IMAGES * image_seconds["plain"] + STEPS * step_seconds["plain"])
    our_total = IMAGES * image_seconds["ours"] + EPOCHS * STEPS * step_seconds["ours"]
    for name in ("plain", "ours"):
        print(f"{name:5s} {image_seconds[name]:6.3f} s an image, {step_seconds[name]:6.3f} s a step without the images")
    print(f"plain: {EPOCHS} x ({IMAGES} x {image_seconds['plain']:.3f} + {STEPS} x {step_seconds['plain']:.3f}) s"
          f" = {plain_total:.0f} s")  # fmt: skip
    print(f"ours:  {IMAGES} x {image_seconds['ours']:.3f} + {EPOCHS} x {STEPS} x {step_seconds['ours']:.3f} s"
          f" = {our_total:.0f} s")  # fmt: skip
    print(f"{plain_total / our_total:.1f} times faster; features of all images on disk: {size * IMAGES / 1e9:.1f} GB")
    print(f"differences: features {feature_error:.1e}, losses of the first steps {max(loss_errors):.1e} (relative)")
    finish({"ratio": plain_total / our_total, "image_seconds": image_seconds, "step_seconds": step_seconds,
            "errors": {"features": feature_error, "losses": max(loss_errors)},
            "peak_memory_mb": peak_memory(), "matrix_product_gflops": rate / 1e9})  # fmt: skip


def time_steps(method: Method, plain_learner, encoded: dict, folder: Path, rounds: int):
    """Best seconds of a step of each procedure, their losses, and the bytes of one image's features.

    A step of ours reads the features of 8 images from a memory-mapped cache of 64, as training does.
    """
    import numpy as np
    import torch
    from plain import encode_text, loss

    image_size, count = method.model.image_size, 8 * BATCH
    stream = torch.Generator().manual_seed(1)
    arrays = {}
    for name, value in encoded.items():
        path = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, "w+", "float32", (count, *value.shape[1:]))
        for row in range(count):
            array[row] = (value + 0.3 * value.std() * torch.randn(value.shape, generator=stream))[0].numpy()
        array.flush()
    masks = np.lib.format.open_memmap(folder / "mask.npy", "w+", bool, (count, image_size, image_size))
    masks[1::2, image_size // 4 : image_size // 2, image_size // 4 : image_size // 2] = True
    masks.flush()
    arrays = {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in folder.glob("*.npy")}
    labels = torch.arange(BATCH) % 2
    ours, theirs = method.optimizer(), torch.optim.Adam(plain_learner.parameters(), 0.001, (0.5, 0.999))
    orders = torch.randperm(count // 2, generator=stream).mul(2)
    losses = {"plain": [], "ours": []}

    def batch(step: int) -> dict[str, torch.Tensor]:
        rows = torch.stack([orders[step * 4 : step * 4 + 4], orders[step * 4 : step * 4 + 4] + 1], dim=1).flatten()
        return {name: array[rows].float() for name, array in arrays.items()}

    def our_step() -> None:
        values = batch(len(losses["ours"]))
        total = sum(method.losses(values, labels, values.pop("mask"), ["object"] * BATCH).values())
        step(ours, total, "ours")

    def plain_step() -> None:
        values = batch(len(losses["plain"]))
        taps = values["patch_features"].unbind(1)
        text_features = encode_text(method.model.clip, plain_learner)
        step(theirs, loss(text_features, values["image_features"], taps, labels, values["mask"]), "plain")

    def step(optimizer: torch.optim.Optimizer, total: torch.Tensor, name: str) -> None:
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses[name].append(total.item())

    seconds, _ = alternate({"plain": plain_step, "ours": our_step}, 1 + rounds)
    return seconds, losses, sum(array[0].numel() * array.element_size() for array in arrays.values())


if __name__ == "__main__":
    main()
