"""The metrics against scikit-learn, values of the released code and of anomalib, and loops that are slow and plain."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

import metrics
from metrics import (
    aupimo,
    image_ap,
    image_auroc,
    image_f1_max,
    pixel_ap,
    pixel_aupro,
    pixel_aupro_exact,
    pixel_auroc,
    pixel_f1_max,
)

REFERENCE = Path(__file__).parent / "data" / "metrics_reference.npz"
ANOMALIB = json.loads((Path(__file__).parent / "data" / "aupimo_reference.json").read_text())["cases"]
PIXEL_METRICS = [pixel_auroc, pixel_aupro, pixel_aupro_exact, pixel_ap, pixel_f1_max, aupimo]
IMAGE_METRICS = [image_auroc, image_ap, image_f1_max]


def find_regions(mask):
    """Pixel lists of the 8-connected regions, by flood fill."""
    left = {tuple(pixel) for pixel in np.argwhere(mask)}
    regions = []
    while left:
        region, frontier = [], [left.pop()]
        while frontier:
            y, x = frontier.pop()
            region.append((y, x))
            neighbours = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= neighbours
            frontier.extend(neighbours)
        regions.append(region)
    return regions


def pro_and_fpr(masks, maps, thresholds, above):
    """PRO and FPR of the binary maps above(maps, threshold), a threshold at a time."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in find_regions(mask)]
    normal_pixels = (masks == 0).sum()
    pros, fprs = [], []
    for threshold in thresholds:
        positive = above(maps, threshold)
        pros.append(np.mean([np.mean([positive[i, y, x] for y, x in region]) for i, region in regions]))
        fprs.append((positive & (masks == 0)).sum() / normal_pixels)
    return np.array(pros), np.array(fprs)


def area_under(x, y):
    return float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2))


def aupro_by_loop(masks, maps):
    lowest, highest = maps.min(), maps.max()
    thresholds = np.arange(lowest, highest, (highest - lowest) / maps.dtype.type(200))
    # In float64, the type of the thresholds: NumPy 1 would round a threshold to the type of the maps first.
    pros, fprs = pro_and_fpr(masks, maps.astype(np.float64), thresholds, np.greater)
    pros, fprs = pros[fprs < 0.3], fprs[fprs < 0.3]
    fprs = (fprs - fprs.min()) / (fprs.max() - fprs.min())
    return area_under(fprs[::-1], pros[::-1])


def exact_aupro_by_loop(masks, maps):
    pros, fprs = pro_and_fpr(masks, maps, np.unique(maps)[::-1], np.greater_equal)
    pros, fprs = np.concatenate([[0], pros]), np.concatenate([[0], fprs])
    last = np.argmax(fprs > 0.3)  # the first point beyond the limit; the lowest threshold has FPR 1
    share = (0.3 - fprs[last - 1]) / (fprs[last] - fprs[last - 1])
    pros[last] = pros[last - 1] + share * (pros[last] - pros[last - 1])
    fprs[last] = 0.3
    return area_under(fprs[: last + 1], pros[: last + 1]) / 0.3


def random_case(seed):
    """A few small images: single-pixel, diagonal and blocky regions, one image without; maps with and without ties."""
    rng = np.random.default_rng(seed)
    images, height, width = rng.integers(2, 5), rng.integers(6, 20), rng.integers(6, 20)
    masks = (rng.random((images, height, width)) < 0.04).astype(np.uint8)
    masks[0, 2:5, 1:4] = 1
    masks[0, 5, 4] = 1
    masks[-1] = 0
    maps = rng.standard_normal(masks.shape) + rng.random() * 2 * masks
    if seed % 3 == 1:
        maps = np.round(maps * 2) / 2
    if seed % 3 == 2:
        maps[:, : height // 2] = np.round(maps[:, : height // 2])
        maps[0, :, : width // 2] = 0.25
    return masks, maps.astype([np.float32, np.float64][seed // 3 % 2])


def test_released_values():
    """Values of the released implementation: pixel AUROC, AUPRO, image AUROC, image AP; image score = map maximum."""
    reference = np.load(REFERENCE)
    masks, maps, labels = reference["masks"], reference["maps"].astype(np.float32), reference["labels"]
    scores = maps.max((1, 2))
    values = [pixel_auroc(masks, maps), pixel_aupro(masks, maps), image_auroc(labels, scores), image_ap(labels, scores)]
    np.testing.assert_allclose(values, reference["metrics"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_pixel_metrics_equal_plain_loops(seed):
    masks, maps = random_case(seed)
    assert pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert pixel_aupro(masks, maps) == pytest.approx(aupro_by_loop(masks, maps), abs=1e-12)
    assert pixel_aupro_exact(masks, maps) == pytest.approx(exact_aupro_by_loop(masks, maps), abs=1e-12)


@pytest.mark.parametrize("levels", [7, 20, 100, 200, 201, 400])
def test_values_on_thresholds(levels):
    """Integers from 0 to `levels` fall on the thresholds, where > and >= differ."""
    rng = np.random.default_rng(levels)
    masks = random_case(levels)[0]
    maps = rng.integers(0, levels + 1, masks.shape).astype(np.float32)
    maps.flat[:2] = 0, levels
    assert pixel_aupro(masks, maps) == pytest.approx(aupro_by_loop(masks, maps), abs=1e-12)
    assert pixel_aupro_exact(masks, maps) == pytest.approx(exact_aupro_by_loop(masks, maps), abs=1e-12)
    assert pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_large_offset_and_tiny_range():
    """Steps between thresholds below the resolution of float32."""
    masks, maps = random_case(0)
    for moved in (maps + np.float32(20000), maps * np.float32(1e-30)):
        assert pixel_auroc(masks, moved) == pytest.approx(roc_auc_score(masks.ravel(), moved.ravel()), abs=1e-12)
        assert pixel_aupro(masks, moved) == pytest.approx(aupro_by_loop(masks, moved), abs=1e-12)
        assert pixel_aupro_exact(masks, moved) == pytest.approx(exact_aupro_by_loop(masks, moved), abs=1e-12)


def test_float64_is_not_rounded():
    masks = np.zeros((1, 4, 4), dtype=np.uint8)
    masks[0, 0, 0] = 1
    maps = np.ones((1, 4, 4))
    maps[0, 0, 0] += 1e-12
    assert pixel_auroc(masks, maps) == 1
    assert pixel_aupro_exact(masks, maps) == 1
    assert pixel_auroc(masks, maps.astype(np.float32)) == 0.5


def test_diagonal_pixels_are_one_region():
    """Of two regions, one has a pixel of its two above all normal pixels, the other nothing: PRO is 1/4 up to FPR 1."""
    masks = np.zeros((1, 10, 10), dtype=np.uint8)
    masks[0, 1, 1] = masks[0, 2, 2] = masks[0, 7, 7] = 1
    maps = np.linspace(0.1, 0.9, 100).reshape(1, 10, 10)
    maps[0, 1, 1] = 1
    maps[0, 2, 2] = maps[0, 7, 7] = 0
    assert pixel_aupro_exact(masks, maps) == pytest.approx(0.25)
    assert pixel_aupro(masks, maps) == pytest.approx(0.25)


def test_fpr_range_by_hand():
    """The curve is (0.1, 0), (0.1, 0.5), (0.2, 0.5), (0.2, 1), (0.3, 1); the released AUPRO drops the last."""
    maps = np.array([[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 7.5, 8.5]]], dtype=np.float32)
    masks = np.isin(maps, [7.5, 8.5])
    assert pixel_aupro(masks, maps) == pytest.approx(0.5)
    assert pixel_aupro_exact(masks, maps) == pytest.approx((0.5 * 0.1 + 1 * 0.1) / 0.3)
    maps[0, 0, 0] = maps[0, 1, 4] = 7  # from (0.2, 0.5) straight to (0.4, 1), so PRO is 0.75 at the limit
    assert pixel_aupro_exact(masks, maps) == pytest.approx((0.5 * 0.1 + (0.5 + 0.75) / 2 * 0.1) / 0.3)


def test_maps_without_information():
    masks, maps = random_case(0)
    constant = np.full_like(maps, 0.3)
    assert pixel_auroc(masks, constant) == 0.5
    assert pixel_aupro_exact(masks, constant) == pytest.approx(0.15)  # the diagonal up to 0.3
    assert pixel_aupro(masks, constant) is None


def test_perfect_and_inverted_maps():
    """A perfect binary map has no FPR above 0, so nothing that the released AUPRO could rescale."""
    masks = random_case(0)[0]
    assert [metric(masks, masks.astype(np.float32)) for metric in PIXEL_METRICS] == [1, None, 1, 1, 1, 1]
    assert pixel_auroc(masks, -masks.astype(np.float32)) == 0
    assert pixel_aupro_exact(masks, -masks.astype(np.float32)) == 0


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize("fill", [0, 1])
def test_pixel_metrics_need_both_classes(metric, fill):
    maps = random_case(0)[1]
    assert metric(np.full(maps.shape, fill), maps) is None


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_kinds_of_arrays(metric):
    masks, maps = random_case(1)
    expected = metric(masks, maps)
    assert type(expected) is float
    untouched = maps.copy()
    assert metric(masks.astype(bool), maps) == expected
    assert metric(torch.tensor(masks).float(), torch.tensor(maps)) == expected
    assert metric(masks[:, ::-1], maps[:, ::-1]) == pytest.approx(expected, abs=1e-12)
    assert metric(masks, np.asfortranarray(maps)) == expected
    np.testing.assert_array_equal(maps, untouched)
    half = (maps / 3).astype(np.float16)
    assert metric(masks, half) == metric(masks, half.astype(np.float32))


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_pixel_input_errors(metric):
    masks, maps = random_case(0)
    with pytest.raises(ValueError, match="masks and maps must have one shape"):
        metric(masks[:, None], maps)
    with pytest.raises(ValueError, match="masks and maps must have one shape"):
        metric(masks[0], maps[0])
    with pytest.raises(ValueError, match="masks must hold only 0"):
        metric(masks * 255, maps)
    for bad in (np.nan, np.inf, -np.inf):
        broken = maps.copy()
        broken[1, 2, 3] = bad
        with pytest.raises(ValueError, match="^maps contain NaN or inf$"):
            metric(masks, broken)


@pytest.mark.parametrize("seed", range(3))
def test_image_metrics(seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.permutation([0, 1] * 10), np.round(rng.random(20), 1).astype(np.float32)
    assert image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert image_ap(labels, torch.tensor(scores)) == pytest.approx(average_precision_score(labels, scores))
    assert type(image_auroc(labels.tolist(), scores.tolist())) is float


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_image_metrics_need_both_classes(metric):
    assert metric([0, 0], [0.1, 0.2]) is None
    assert metric([1, 1], [0.1, 0.2]) is None


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_image_input_errors(metric):
    with pytest.raises(ValueError, match="labels and scores must have one shape"):
        metric([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="^scores contain NaN or inf$"):
        metric([0, 1], [0.1, np.nan])
    with pytest.raises(ValueError, match="labels must hold only 0"):
        metric([0, 2], [0.1, 0.2])


# F1-max, average precision of pixels, AUPIMO


def f1_max_by_scikit_learn(truth, values) -> float:
    precision, recall, _ = precision_recall_curve(truth, values)
    both = precision + recall
    return float((2 * precision * recall / np.where(both == 0, 1, both)).max())


def f1_max_by_loop(truth, values) -> float:
    """At each value as the threshold, counted."""
    best = 0.0
    for threshold in np.unique(values):
        above = values >= threshold
        best = max(best, 2 * (above & truth).sum() / (above.sum() + truth.sum()))
    return best


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_f1_max_and_average_precision_are_scikit_learns(seed, ties):
    stream = np.random.RandomState(seed)
    masks = stream.rand(5, 13, 11) < (0.02, 0.2, 0.5, 0.97)[seed]
    masks[0, 0, :2] = True, False
    maps = (stream.rand(5, 13, 11) + 0.3 * masks).astype(np.float32)
    maps = maps.round(1) if ties else maps
    assert pixel_ap(masks, maps) == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert pixel_f1_max(masks, maps) == pytest.approx(f1_max_by_scikit_learn(masks.ravel(), maps.ravel()), abs=1e-12)
    assert pixel_f1_max(masks, maps) == pytest.approx(f1_max_by_loop(masks, maps), abs=1e-12)
    labels, scores = masks[:, 0].ravel(), maps[:, 0].ravel()
    assert image_f1_max(labels, scores) == pytest.approx(f1_max_by_loop(labels, scores), abs=1e-12)


def test_f1_max_and_average_precision_by_hand():
    """Anomalous: 4 and 2; normal: 3 and 1. At 2: 2 hits, 1 false alarm. AP: 1/2 * 1/1 + 1/2 * 2/3."""
    masks, maps = np.array([[[1, 0], [1, 0]]]), np.array([[[4.0, 3.0], [2.0, 1.0]]])
    assert pixel_f1_max(masks, maps) == image_f1_max(masks.ravel(), maps.ravel()) == pytest.approx(2 * 2 / (2 + 3))
    assert pixel_ap(masks, maps) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def pimo_arrays(seed):
    """25 normal images of 200 x 200 pixels, so that FPR 1e-5 is 10 pixels, and 6 with a rectangle that stands out."""
    stream = np.random.RandomState(seed)
    masks, maps = np.zeros((31, 200, 200), bool), stream.standard_normal((31, 200, 200)).astype(np.float32)
    for index in range(25, 31):
        top, left = stream.randint(0, 160, 2)
        masks[index, top : top + 30, left : left + 25] = True
        maps[index] += 0.6 * (index - 22) * masks[index]
    return masks, maps


def aupimo_of_each_image(masks, maps):
    return [aupimo(masks[[*range(25), index]], maps[[*range(25), index]]) for index in range(25, 31)]


@pytest.mark.parametrize("case", [case for case in ANOMALIB if not case["rounding"]])
def test_aupimo_is_anomalibs(case):
    """To its own error: where a normal and an anomalous pixel lie between the same two of its thresholds, it draws one
    slope for two steps. That is at most one of 750 pixels, for half the way from FPR 1.0e-5 to 1.1e-5: 2.8e-5.
    """
    masks, maps = pimo_arrays(case["seed"])
    np.testing.assert_allclose(aupimo_of_each_image(masks, maps), case["aupimo"], rtol=0, atol=2.8e-5)
    assert aupimo(masks, maps) == pytest.approx(np.mean(case["aupimo"]), abs=1e-5)


@pytest.mark.parametrize("case", [case for case in ANOMALIB if case["rounding"]])
def test_aupimo_with_ties_is_anomalibs(case, monkeypatch):
    """Few enough values that its thresholds meet them all, and limits that the curve meets: no error is left."""
    monkeypatch.setattr(metrics, "AUPIMO_LIMITS", case["limits"])
    masks, maps = pimo_arrays(case["seed"])
    maps = maps.astype(np.float16) if case["rounding"] == "float16" else maps.round(1)
    np.testing.assert_allclose(aupimo_of_each_image(masks, maps), case["aupimo"], rtol=0, atol=1e-12)


def test_aupimo_of_rounded_maps():
    masks, maps = pimo_arrays(0)
    assert aupimo(masks, maps.astype(np.float16)) == pytest.approx(aupimo(masks, maps), abs=5e-5)
    assert aupimo(masks, maps.round(1)) == pytest.approx(aupimo(masks, maps), abs=1e-3)


def aupimo_by_loop(masks, maps) -> float:
    """Every value above 3 as a threshold, and the curve of each image integrated point by point.

    The maps are rounded, so these are few, and reach beyond FPR 1e-4.
    """
    anomalous = masks.any(axis=(1, 2))
    limits = np.log([1e-5, 1e-4])
    thresholds = np.unique([*maps[maps > 3], np.inf])[::-1]
    fpr = np.array([(maps[~anomalous] >= threshold).mean() for threshold in thresholds])
    recalls = []
    for mask, values in zip(masks[anomalous], maps[anomalous], strict=True):
        recall = np.array([(values[mask] >= threshold).mean() for threshold in thresholds])
        before = recall[fpr == 0].max()  # of pixels above all normal ones: it holds up to the first false alarm
        x, y = np.log(fpr[fpr > 0]), recall[fpr > 0]
        x, y = np.concatenate([[-99, x[0]], x]), np.concatenate([[before, before], y])
        ends = [np.searchsorted(x, limit) for limit in limits]
        at_ends = [
            y[k - 1] + (limit - x[k - 1]) / (x[k] - x[k - 1]) * (y[k] - y[k - 1])
            for k, limit in zip(ends, limits, strict=True)
        ]
        x = np.concatenate([limits[:1], x[ends[0] : ends[1]], limits[1:]])
        y = np.concatenate([at_ends[:1], y[ends[0] : ends[1]], at_ends[1:]])
        recalls.append(area_under(x, y) / np.log(10))
    return float(np.mean(recalls))


@pytest.mark.parametrize("normal_images", [25, 2])
@pytest.mark.parametrize("decimals", [1, 2])
def test_aupimo_by_its_definition(decimals, normal_images):
    """2 normal images have 80,000 pixels: the range starts below the first false alarm."""
    masks, maps = pimo_arrays(5)
    masks, maps = masks[25 - normal_images :], maps[25 - normal_images :].round(decimals)
    assert aupimo(masks, maps) == pytest.approx(aupimo_by_loop(masks, maps), abs=1e-12)


def test_aupimo_by_hand():
    """Of 100,000 normal pixels with values 0, 1, 2, ..., FPR 1e-5 is one. Recall over the tenfold range of FPR:

    1 for a pixel above all; from 3e-5 on for one below the highest three; for one equal to the fourth highest, half of
    the way from 3e-5 to 4e-5 and all from there; 0 for one below the highest ten.
    """
    masks, maps = np.zeros((3, 250, 400), bool), np.zeros((3, 250, 400))
    maps[0] = np.arange(100_000).reshape(250, 400)
    masks[1, 0, :4] = masks[2, 7, 7] = True
    maps[1, 0, :4] = 200_000, 99_996.5, 99_996, 99_989.5
    maps[2, 7, 7] = 99_996.5
    from_three = 1 - np.log10(3)
    tied = 1 - (np.log10(3) + np.log10(4)) / 2
    first, second = (1 + from_three + tied + 0) / 4, from_three
    assert aupimo(masks[:2], maps[:2]) == pytest.approx(first, abs=1e-12)
    assert aupimo(masks, maps) == pytest.approx((first + second) / 2, abs=1e-12)  # images count alike, not pixels


@pytest.mark.parametrize("at_once", [1, 7])
def test_points_in_pieces(at_once, monkeypatch):
    masks, maps = random_case(1)
    whole = pixel_ap(masks, maps), pixel_f1_max(masks, maps)
    monkeypatch.setattr(metrics, "PIXELS_AT_ONCE", at_once)
    assert (pixel_ap(masks, maps), pixel_f1_max(masks, maps)) == pytest.approx(whole, abs=1e-12)


def test_aupimo_needs_normal_images_and_anomalous_ones():
    masks, maps = pimo_arrays(0)
    assert aupimo(masks[25:], maps[25:]) is None and aupimo(masks[:25], maps[:25]) is None
    assert aupimo(masks, np.where(masks, 9, 0)) == 1 and aupimo(masks, np.where(masks, -9, 0)) == 0
