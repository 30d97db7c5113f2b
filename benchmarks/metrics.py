"""The released AUPRO in plain loops, scikit-learn and anomalib's AUPIMO against metrics.py, on random maps.

python benchmarks/metrics.py            # 40 maps of 518 x 518, then memory with 400
python benchmarks/metrics.py --small    # 10 maps of 260 x 260
"""

import argparse
import tracemalloc
from collections.abc import Callable

import numpy as np
from common import alternate, finish, matrix_product_rate, peak_memory


def random_maps(count: int, side: int, regions: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Masks (bool) with discs and maps (float32) that are higher there; both (count, side, side).

    regions: discs in each image; 0: normal images.
    """
    from scipy import ndimage

    stream = np.random.RandomState(seed)
    rows, columns = np.mgrid[:side, :side]
    masks, maps = np.zeros((count, side, side), bool), np.empty((count, side, side), np.float32)
    for mask, values in zip(masks, maps, strict=True):
        for region in range(regions):
            radius = stream.randint(side // 40, side // 12)
            row, column = stream.randint(side // 6, side // 3), stream.randint(radius, side - radius)
            row += region * side // 4
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        noise = ndimage.gaussian_filter(stream.standard_normal((side, side)).astype(np.float32), 4)
        values[:] = noise / noise.std() + 1.5 * ndimage.gaussian_filter(mask.astype(np.float32), 6)
    return masks, maps


def plain_aupro(masks: np.ndarray, maps: np.ndarray) -> float:
    """The released procedure: at each of 200 thresholds every mask is labelled and every region compared again."""
    from scipy import ndimage
    from sklearn.metrics import auc

    lowest, highest = maps.min(), maps.max()
    fprs, pros = [], []
    for threshold in np.arange(lowest, highest, (highest - lowest) / np.float32(200)):
        found = maps > threshold
        covered = []
        for mask, positive in zip(masks, found, strict=True):
            regions, count = ndimage.label(mask, np.ones((3, 3)))
            covered += [positive[regions == region].mean() for region in range(1, count + 1)]
        pros.append(np.mean(covered))
        fprs.append((found & ~masks).sum() / (~masks).sum())
    fprs, pros = np.array(fprs), np.array(pros)
    kept = fprs < 0.3
    fprs = fprs[kept]
    return auc((fprs - fprs.min()) / (fprs.max() - fprs.min()), pros[kept])


def plain_aupimo(masks: np.ndarray, maps: np.ndarray) -> float:
    """anomalib's procedure: 300,000 thresholds, at which the pixels of every image are counted by two sorts of it."""
    normal = ~masks.any((1, 2))
    thresholds = np.linspace(maps[normal].min(), maps[normal].max(), 300_000, dtype=maps.dtype)
    fprs, recalls = [], []
    for mask, values in zip(masks, maps, strict=True):
        above = []
        for pixels in (mask, ~mask):
            ordered = np.sort(np.where(pixels, values, -np.inf), axis=None)
            above.append(ordered.size - np.searchsorted(ordered, thresholds))
        if mask.any():
            recalls.append(above[0] / mask.sum())
        else:
            fprs.append(above[1] / mask.size)
    fpr = np.mean(fprs, axis=0)
    last, first = (np.argmin(np.abs(fpr - limit)) for limit in (1e-4, 1e-5))
    recalls = np.array(recalls)[:, last : first + 1]
    return float(np.trapezoid(recalls[:, ::-1], np.log(fpr[last : first + 1][::-1])).mean() / np.log(10))


def traced_memory(function: Callable, *arrays: np.ndarray) -> int:
    """The most that a call allocates at a time, in bytes."""
    tracemalloc.start()
    function(*arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few seconds instead of a minute")
    small = parser.parse_args().small

    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    # The project's metrics.py and not this file: `common` has put the root before this folder.
    from metrics import aupimo, pixel_ap, pixel_aupro, pixel_aupro_exact, pixel_auroc, pixel_f1_max

    def plain_f1_max(masks: np.ndarray, maps: np.ndarray) -> float:
        precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
        return (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()

    count, side = (10, 260) if small else (40, 518)
    masks, maps = random_maps(count, side)
    print(f"{count} maps of {side} x {side}, 3 regions each, {100 * masks.mean():.1f} % anomalous")
    # AUPIMO needs normal images: half as many, beside half of the others, whose defects stand out more here.
    with_normal = np.concatenate([masks[::2], np.zeros_like(masks[::2])])
    normal_maps = random_maps(count // 2, side, regions=0, seed=1)[1]
    with_normal = with_normal, np.concatenate([maps[::2] + 2 * masks[::2], normal_maps])

    ratios, errors, memory = {}, {}, {}
    for name, plain, ours, arrays in (
        ("aupro", plain_aupro, pixel_aupro, (masks, maps)),
        ("pixel_auroc", lambda m, v: roc_auc_score(m.ravel(), v.ravel()), pixel_auroc, (masks, maps)),
        ("pixel_ap", lambda m, v: average_precision_score(m.ravel(), v.ravel()), pixel_ap, (masks, maps)),
        ("pixel_f1_max", plain_f1_max, pixel_f1_max, (masks, maps)),
        ("aupimo", plain_aupimo, aupimo, with_normal),
    ):
        paths = {"plain": lambda f=plain, a=arrays: f(*a), "ours": lambda f=ours, a=arrays: f(*a)}
        seconds, values = alternate(paths, rounds=2)
        ratios[name], errors[name] = seconds["plain"] / seconds["ours"], abs(values["plain"] - values["ours"])
        print(f"{name}: plain {seconds['plain']:.2f} s, ours {seconds['ours']:.2f} s, {ratios[name]:.1f} times faster")
        print(f"    values {values['plain']:.6f} and {values['ours']:.6f}, difference {errors[name]:.1e}")
        needed = [traced_memory(f, *arrays) / arrays[1].nbytes for f in (plain, ours)]
        print(f"    memory: plain {needed[0]:.2f} times the maps, ours {needed[1]:.2f}, on top")

    masks, maps = random_maps(10 * count, side)
    masks[::2] = False  # normal images, which AUPIMO needs
    for name, function in (
        ("aupro", pixel_aupro), ("pixel_auroc", pixel_auroc), ("aupro_exact", pixel_aupro_exact),
        ("pixel_ap", pixel_ap), ("pixel_f1_max", pixel_f1_max), ("aupimo", aupimo),
    ):  # fmt: skip
        memory[name] = traced_memory(function, masks, maps) / maps.nbytes
        print(
            f"{name} of {10 * count} maps: {memory[name]:.2f} times the {maps.nbytes / 1e6:.0f} MB of the maps, on top"
        )
    finish(
        {
            "ratios": ratios,
            "errors": errors,
            "memory_over_maps": memory,
            "peak_mb": peak_memory(),
            "matrix_product_gflops": matrix_product_rate() / 1e9,
        }
    )


if __name__ == "__main__":
    main()
