"""Image- and pixel-level metrics of one class, as fractions in [0, 1].

Every metric returns None where it does not exist (the docstrings say when). Every metric raises ValueError for shapes
that do not fit, labels or masks with values other than 0 and 1, and scores or maps with NaN or inf. Arrays are NumPy
arrays or CPU tensors; maps of float16 are read as float32, float64 stays float64.

The pixel metrics give what scikit-learn and loops over thresholds give, but sort or bin each pixel only once.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

FPR_LIMIT = 0.3
AUPRO_STEPS = 200
AUPIMO_LIMITS = (1e-5, 1e-4)  # of the false positive rate of normal images
PIXELS_AT_ONCE = 2**20
EIGHT_NEIGHBOURS = np.ones((3, 3))


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve of image scores.

    labels: (N,), 1 for anomalous images, else 0; scores: (N,), higher means more anomalous.
    None when there is no normal or no anomalous image.
    """
    labels, scores = _checked(labels, scores, "labels", "scores", ndim=1)
    return float(roc_auc_score(labels, scores)) if labels.any() and not labels.all() else None


def image_ap(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Average precision of image scores, anomalous being the positive class. Arguments and None as in image_auroc."""
    labels, scores = _checked(labels, scores, "labels", "scores", ndim=1)
    return float(average_precision_score(labels, scores)) if labels.any() and not labels.all() else None


def image_f1_max(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The largest F1 that a threshold of image scores reaches. Arguments and None as in image_auroc."""
    labels, scores = _checked(labels, scores, "labels", "scores", ndim=1)
    if not labels.any() or labels.all():
        return None
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)).max())


def pixel_auroc(masks: ArrayLike, maps: ArrayLike) -> float | None:
    """Area under the ROC curve over all pixels of all images; ties count half, as in scikit-learn.

    masks: (N, H, W), 1 where anomalous, else 0; maps: (N, H, W), higher means more anomalous.
    None when there is no normal or no anomalous pixel.

    Computed as the rank statistic: the share of (anomalous, normal) pixel pairs in the right order, in exact integers.
    """
    masks, maps = _checked(masks, maps, "masks", "maps", ndim=3)
    if not masks.any() or masks.all():
        return None
    normal = _sorted_normal_pixels(masks, maps)
    twice_right_order = anomalous_pixels = 0
    for mask, image_map in zip(masks, maps, strict=True):
        values = np.sort(image_map[mask].astype(normal.dtype, copy=False))
        for side in ("left", "right"):
            twice_right_order += int(np.searchsorted(normal, values, side).sum())
        anomalous_pixels += values.size
    return twice_right_order / (2 * anomalous_pixels * normal.size)


def pixel_ap(masks: ArrayLike, maps: ArrayLike) -> float | None:
    """Average precision over all pixels of all images, as scikit-learn defines it.

    masks: (N, H, W), 1 where anomalous, else 0; maps: (N, H, W), higher means more anomalous.
    None when there is no normal or no anomalous pixel.

    Computed as the mean over anomalous pixels of the precision at their value as the threshold.
    """
    masks, maps = _checked(masks, maps, "masks", "maps", ndim=3)
    if not masks.any() or masks.all():
        return None
    precisions = sum((hits / (hits + false)).sum() for hits, false in _counts_at_anomalous_pixels(masks, maps))
    return float(precisions / masks.sum())


def pixel_f1_max(masks: ArrayLike, maps: ArrayLike) -> float | None:
    """The largest F1 over all pixels of all images that a threshold reaches. Arguments and None as in pixel_ap.

    Only the values of anomalous pixels are tried: any other threshold has as many hits as the next of these above it,
    and more false alarms.
    """
    masks, maps = _checked(masks, maps, "masks", "maps", ndim=3)
    if not masks.any() or masks.all():
        return None
    anomalous = masks.sum()
    points = _counts_at_anomalous_pixels(masks, maps)
    return float(max((2 * hits / (anomalous + hits + false)).max() for hits, false in points))


def aupimo(masks: ArrayLike, maps: ArrayLike) -> float | None:
    """Mean per-image recall at very few false alarms on normal images (Bertoldo et al., AUPIMO, BMVC 2024).

    masks: (N, H, W), 1 where anomalous, else 0; maps: (N, H, W), higher means more anomalous.
    None when no image is normal throughout, or none has an anomalous pixel.

    At each threshold, FPR is the share of the normal images' pixels that are not below it (the mean of the images' own
    rates, as they have one size), and the recall of an anomalous image the share of its anomalous pixels. The recall is
    averaged over FPR from 1e-5 to 1e-4 on a logarithmic axis, by the trapezoid rule, and over the anomalous images.
    All distinct thresholds are used and the curve is cut at the limits, where anomalib takes 300,000 thresholds and the
    nearest to the limits. Up to the first false alarm the recall is 0, but for pixels above all of the normal images:
    with fewer than 1e5 pixels in these, that is part of the range, and anomalib refuses.
    """
    masks, maps = _checked(masks, maps, "masks", "maps", ndim=3)
    anomalous = masks.any(axis=(1, 2))
    if anomalous.all() or not anomalous.any():
        return None
    normal, total = _highest(maps[~anomalous].astype(_float_dtype(maps), copy=False).ravel(), AUPIMO_LIMITS[1])
    limits = np.log(AUPIMO_LIMITS)
    recalls = []
    for index in np.flatnonzero(anomalous):
        # Each anomalous pixel is a ramp, as in pixel_aupro_exact, here over the logarithm of FPR; it is a step where no
        # normal pixel has its value, or none has a higher one.
        values = maps[index][masks[index]].astype(normal.dtype, copy=False)
        start = normal.size - np.searchsorted(normal, values, "right")
        end = normal.size - np.searchsorted(normal, values, "left")
        start = np.where(start == 0, end, start)
        counts = np.array([start, end])
        start, end = np.log(np.where(counts == 0, AUPIMO_LIMITS[0], counts / total))  # above all: from the lowest on
        lowest, highest = (
            (np.clip(limit, start, end) - start) ** 2 / (2 * np.where(end > start, end - start, 1))
            + np.maximum(limit - end, 0)
            for limit in limits
        )
        recalls.append(np.minimum((highest - lowest) / (limits[1] - limits[0]), 1).mean())
    return float(np.mean(recalls))


def pixel_aupro(masks: ArrayLike, maps: ArrayLike) -> float | None:
    """AUPRO (Bergmann et al., CVPR 2020) by the procedure of the released AnomalyCLIP code, as in the paper's tables.

    masks: (N, H, W), 1 where anomalous, else 0; maps: (N, H, W), higher means more anomalous.
    None when there is no normal or no anomalous pixel, or when the thresholds meet fewer than two different false
    positive rates below 0.3: so for constant maps, and for perfect binary maps.

    200 evenly spaced thresholds span the range of the maps. At each, PRO is the mean over all 8-connected anomalous
    regions of the fraction of the region above the threshold, FPR the fraction of all normal pixels above it. The
    points with FPR < 0.3 are kept, their FPRs rescaled to [0, 1] by their own minimum and maximum, and the area under
    PRO(FPR) is taken by the trapezoid rule. pixel_aupro_exact is the metric that this approximates.
    """
    masks, maps = _checked(masks, maps, "masks", "maps", ndim=3)
    if not masks.any() or masks.all():
        return None
    dtype = _float_dtype(maps)
    lowest, highest = maps.min().astype(dtype), maps.max().astype(dtype)
    # The step is rounded to the type of the maps while np.arange counts in float64: as in the released code.
    step = (highest - lowest) / dtype.type(AUPRO_STEPS)
    if step == 0:
        return None
    thresholds = np.arange(lowest, highest, step)
    bins = len(thresholds) + 1  # a pixel's bin is the number of thresholds that it exceeds

    normal_histogram = np.zeros(bins, dtype=np.int64)
    region_sum, region_count = np.zeros(bins), 0
    for mask, image_map in zip(masks, maps, strict=True):
        exceeded = np.searchsorted(thresholds, image_map, side="left")
        normal_histogram += np.bincount(exceeded[~mask], minlength=bins)
        regions, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
        histograms = np.bincount((regions[mask] - 1) * bins + exceeded[mask], minlength=count * bins)
        in_or_above = _cumulate_from_top(histograms.reshape(count, bins))
        region_sum += (in_or_above / in_or_above[:, :1]).sum(0)
        region_count += count

    in_or_above = _cumulate_from_top(normal_histogram)
    fpr, pro = (in_or_above / in_or_above[0])[1:], (region_sum / region_count)[1:]
    kept = fpr < FPR_LIMIT
    fpr, pro = fpr[kept], pro[kept]
    if np.unique(fpr).size < 2:
        return None
    return float(auc((fpr - fpr.min()) / (fpr.max() - fpr.min()), pro))


def pixel_aupro_exact(masks: ArrayLike, maps: ArrayLike) -> float | None:
    """Area under the PRO curve up to FPR 0.3, divided by 0.3, over all distinct thresholds.

    masks: (N, H, W), 1 where anomalous, else 0; maps: (N, H, W), higher means more anomalous.
    None when there is no normal or no anomalous pixel.

    This is the metric as MVTec AD defines it (Bergmann et al., CVPR 2019 and IJCV 2021): the curve starts at (0, 0) and
    is linear between its points, also across the limit; regions are 8-connected. pixel_aupro differs: it has only 200
    thresholds, and stretches the FPR range that they happen to meet to [0, 1] instead of integrating over [0, 0.3]. If
    the smallest FPR met is above 0, the start of the curve, where PRO is lowest, is left out and the value inflated; if
    the largest is well below 0.3, the end, where PRO is highest, is left out and the value lowered.
    """
    masks, maps = _checked(masks, maps, "masks", "maps", ndim=3)
    if not masks.any() or masks.all():
        return None
    normal = _sorted_normal_pixels(masks, maps)
    limit = FPR_LIMIT * normal.size
    area, region_count = 0.0, 0
    for mask, image_map in zip(masks, maps, strict=True):
        # The curve is a sum over anomalous pixels, each a ramp: 0 until the normal pixels above its value are let in,
        # then rising while those equal to it are, then constant. In normal pixels the ramp spans [start, end].
        values = image_map[mask].astype(normal.dtype, copy=False)
        start = normal.size - np.searchsorted(normal, values, "right")
        end = normal.size - np.searchsorted(normal, values, "left")
        on_ramp = np.clip(limit - start, 0, end - start)
        pixel_areas = on_ramp**2 / (2 * np.maximum(end - start, 1)) + np.maximum(limit - end, 0)
        regions, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
        regions = regions[mask] - 1
        area += (np.bincount(regions, pixel_areas) / np.bincount(regions)).sum()
        region_count += count
    return float(area / (limit * region_count))


def _checked(
    truth: ArrayLike, predicted: ArrayLike, truth_name: str, predicted_name: str, ndim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, the truth as bool; ValueError if they are not what the metrics take."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != ndim or truth.shape != predicted.shape:
        raise ValueError(
            f"{truth_name} and {predicted_name} must have one shape with {ndim} dimension(s), "
            f"got {truth.shape} and {predicted.shape}"
        )
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError(f"{truth_name} must hold only 0 (normal) and 1 (anomalous)")
    if not np.isfinite(predicted).all():
        raise ValueError(f"{predicted_name} contain NaN or inf")
    return truth.astype(bool), predicted


def _float_dtype(maps: np.ndarray) -> np.dtype:
    """Type to compare map values in: float32, or float64 where float32 cannot hold them."""
    return np.result_type(maps.dtype, np.float32)


def _sorted_normal_pixels(masks: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Map values of all normal pixels, ascending."""
    normal = maps[~masks].astype(_float_dtype(maps), copy=False)
    normal.sort()
    return normal


def _counts_at_anomalous_pixels(masks: np.ndarray, maps: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Anomalous and normal pixels that are not below each anomalous pixel, a million of these at a time."""
    normal = _sorted_normal_pixels(masks, maps)
    anomalous = maps[masks].astype(normal.dtype, copy=False)
    anomalous.sort()
    for first in range(0, anomalous.size, PIXELS_AT_ONCE):
        values = anomalous[first : first + PIXELS_AT_ONCE]
        yield tuple(pixels.size - np.searchsorted(pixels, values, "left") for pixels in (anomalous, normal))


def _highest(values: np.ndarray, share: float) -> tuple[np.ndarray, int]:
    """More than this share of the values, the highest with all ties, ascending; and the number of all.

    values: (N,), reordered in place.
    """
    cut = max(values.size - int(share * values.size) - 1, 0)
    values.partition(cut)
    return np.sort(values[values >= values[cut]]), values.size


def _cumulate_from_top(histogram: np.ndarray) -> np.ndarray:
    """Pixels in each bin or a higher one, along the last axis."""
    return histogram[..., ::-1].cumsum(-1)[..., ::-1]
