"""Defects: a kind is a pair (where, what), a random region and what happens to the surface in it.

The region is the exact mask: outside of it the defective image equals its clean twin.
"""

from collections.abc import Callable

import cv2
import numpy as np

from synthetic.world import Scene, grid, mix, other_colour, place, related_colour, smooth_noise

MIN_AREA, MAX_AREA = 0.02, 0.16  # of the image
FINE_AREA, FINE_SCALE = 0.01, (0.4, 0.7)  # least area of fine defects, and their lengths in those of the others
MIN_CHANGE = 0.13  # mean absolute change of the masked pixels

# ---------------------------------------------------------------- where: (rng, silhouette, scale) -> bool mask


def _anchor(rng: np.random.Generator, region: np.ndarray) -> tuple[float, float]:
    """A random point of the region as x, y in [-1, 1]."""
    spots = np.flatnonzero(region)
    row, column = divmod(int(spots[rng.integers(len(spots))]), region.shape[0])
    return (column + 0.5) * 2 / region.shape[0] - 1, (row + 0.5) * 2 / region.shape[0] - 1


def _local(
    rng: np.random.Generator, region: np.ndarray, low: float, high: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates around a random point of the region, randomly turned.

    Their unit is `scale` times uniform in [low, high]. They wobble, so that what is drawn in them has uneven edges.
    """
    x, y = grid(region.shape[0])
    wobble = [scale * rng.uniform(0.05, 0.15) * (smooth_noise(rng, region.shape[0], 16) - 0.5) for _ in range(2)]
    turn, unit = rng.uniform(0, 2 * np.pi), scale * rng.uniform(low, high)
    return place(x + wobble[0], y + wobble[1], turn, unit, _anchor(rng, region))


def _strokes(lines: list[np.ndarray], width: float, size: int) -> np.ndarray:
    """Polylines (each (N, 2) in [-1, 1]) drawn `width` wide."""
    mask = np.zeros((size, size), np.uint8)
    points = [np.round((line + 1) * (size * 8)).astype(np.int32) for line in lines]  # 4 fractional bits
    cv2.polylines(mask, points, False, 1, max(1, round(width * size / 2)), shift=4)
    return mask > 0


def blob(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A blotch."""
    x, y = _local(rng, region, 0.24, 0.45, scale)
    return np.hypot(x, y) + 1.2 * (smooth_noise(rng, region.shape[0], 9) - 0.5) < 0.9


def oval(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A spot."""
    x, y = _local(rng, region, 0.24, 0.4, scale)
    return np.hypot(x, y / rng.uniform(0.45, 1)) < 1


def patch(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A rectangle."""
    x, y = _local(rng, region, 0.2, 0.38, scale)
    return np.maximum(np.abs(x), np.abs(y) / rng.uniform(0.4, 1)) < 1


def shard(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """An irregular polygon."""
    size, count = region.shape[0], int(rng.integers(3, 7))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radii = scale * rng.uniform(0.2, 0.5, count)
    points = np.array(_anchor(rng, region)) + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round((points + 1) * size / 2).astype(np.int32)], 1)
    return mask > 0


def line(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A long thin bar."""
    x, y = _local(rng, region, 0.35, 0.7, scale)
    return np.maximum(np.abs(x), np.abs(y) * rng.uniform(5, 10)) < 1


def curve(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A bent thread."""
    start = np.array(_anchor(rng, region))
    turn = np.cumsum(rng.uniform(-0.25, 0.25) + rng.normal(0, 0.12, 24)) + rng.uniform(0, 2 * np.pi)
    path = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0) * (scale * rng.uniform(0.04, 0.08))
    return _strokes([path], scale * rng.uniform(0.06, 0.12), region.shape[0])


def crack(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A jagged line with branches."""
    lines, start, heading = [], np.array(_anchor(rng, region)), rng.uniform(0, 2 * np.pi)
    for branch in range(rng.integers(1, 4)):
        turn = heading + rng.normal(0, 0.6, rng.integers(5, 10)) + branch * rng.choice([-0.9, 0.9])
        path = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0) * (scale * rng.uniform(0.1, 0.18))
        lines.append(np.concatenate([start[None], path]))
        start = path[rng.integers(len(path))]
    return _strokes(lines, scale * rng.uniform(0.06, 0.1), region.shape[0])


def spots(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A cluster of dots."""
    size = region.shape[0]
    x, y = grid(size)
    at, mask = np.array(_anchor(rng, region)), np.zeros((size, size), bool)
    for _ in range(rng.integers(3, 9)):
        cx, cy = at + scale * rng.normal(0, 0.25, 2)
        mask |= np.hypot(x - cx, y - cy) < scale * rng.uniform(0.07, 0.16)
    return mask


def band(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A strip across the whole region."""
    _, y = _local(rng, region, 0.06, 0.13, scale)
    return np.abs(y) < 1


def bite(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A bite at the rim."""
    rim = np.pad(region, 1)
    rim = region & ~cv2.erode(rim.astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1].astype(bool)
    x, y = _local(rng, rim, 0.25, 0.45, scale)
    return np.hypot(x, y) + 0.8 * (smooth_noise(rng, region.shape[0], 9) - 0.5) < 0.95


def end(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """Everything beyond a ragged straight line."""
    x, _ = _local(rng, region, 1, 1, 1)
    x = x + rng.uniform(0.1, 0.25) * smooth_noise(rng, region.shape[0], 12)
    return x > np.quantile(x[region], 1 - scale * (1 - rng.uniform(0.82, 0.94)))


def wedge(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A sector with its tip inside."""
    x, y = _local(rng, region, 0.5, 0.9, scale)
    return (np.abs(y) < rng.uniform(0.15, 0.35) * x) & (x < 1)


def loop(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """A ring."""
    x, y = _local(rng, region, 0.25, 0.4, scale)
    return np.abs(np.hypot(x, y / rng.uniform(0.6, 1)) - 0.8) < rng.uniform(0.15, 0.25)


def burst(rng: np.random.Generator, region: np.ndarray, scale: float) -> np.ndarray:
    """Spikes around a point."""
    at, count = np.array(_anchor(rng, region)), int(rng.integers(5, 9))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.normal(0, 0.2, count)
    tips = at + np.stack([np.cos(angles), np.sin(angles)], 1) * (scale * rng.uniform(0.2, 0.5, (count, 1)))
    return _strokes([np.stack([at, tip]) for tip in tips], scale * rng.uniform(0.05, 0.09), region.shape[0])


# ---------------------------------------------------------------- what: (rng, scene, mask) -> (H, W, 3) changed surface


def _surface(scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Mean colour (3,) of the masked surface."""
    return scene.image[mask].mean(0)


def _rough(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The surface with a coarse grain; clean surfaces have none."""
    grain = smooth_noise(rng, image.shape[0], 44) - 0.5
    return image + np.float32(rng.uniform(0.2, 0.45)) * grain[..., None]


def paint(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """A solid foreign colour."""
    return _rough(rng, np.broadcast_to(other_colour(rng, _surface(scene, mask)), scene.image.shape))


def stain(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """A foreign colour that lets the surface through."""
    alpha = rng.uniform(0.45, 0.65) + 0.5 * (smooth_noise(rng, mask.shape[0], 12) - 0.5)
    return _rough(rng, mix(scene.image, other_colour(rng, _surface(scene, mask), 0.45), np.clip(alpha, 0.3, 0.9)))


def burn(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Charred: black and brown."""
    heart = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), mask.shape[0] / 24)
    brown = np.array([0.35, 0.2, 0.08], np.float32) * rng.uniform(0.3, 1)
    return _rough(rng, mix(scene.image * 0.5, brown * 0.6, np.clip(heart * 1.4, 0, 1)))


def darken(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Much darker."""
    return _rough(rng, scene.image * np.float32(rng.uniform(0.2, 0.5)))


def bleach(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Much paler."""
    return _rough(rng, scene.image + (0.95 - scene.image) * np.float32(rng.uniform(0.55, 0.85)))


def remove(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Gone: what is behind shows."""
    return scene.behind


def static(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Noise."""
    channels = 3 if rng.random() < 0.5 else 1
    noise = rng.random((48, 48, channels), dtype=np.float32)
    noise = cv2.resize(noise, mask.shape, interpolation=cv2.INTER_NEAREST).reshape(*mask.shape, channels)
    return scene.image * 0.3 + 0.7 * noise


def mottle(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Two foreign colours in blotches."""
    first = other_colour(rng, _surface(scene, mask), 0.35)
    alpha = np.clip(0.5 + 3 * (smooth_noise(rng, mask.shape[0], 24) - 0.5), 0, 1)
    return mix(np.broadcast_to(first, scene.image.shape), related_colour(rng, first, 0.4), alpha)


def displace(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """The surface moved aside."""
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.25) * mask.shape[0]
    shift = np.round(reach * np.array([np.sin(angle), np.cos(angle)])).astype(int)
    return np.roll(scene.image, tuple(shift), (0, 1))


def swirl(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """The surface warped."""
    size = mask.shape[0]
    strength = rng.uniform(0.15, 0.3) * size
    flow = [(strength * (smooth_noise(rng, size, 7) - 0.5) * 2).astype(np.float32) for _ in range(2)]
    column, row = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    return cv2.remap(scene.image, column + flow[0], row + flow[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def smear(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """The surface dragged along."""
    size = mask.shape[0]
    blurred = cv2.blur(scene.image, (size // 3, 1) if rng.random() < 0.5 else (1, size // 3))
    return blurred * np.float32(rng.choice([0.6, 1.4]))


def dent(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Light and shadow of a dent."""
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), mask.shape[0] / 30)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * np.gradient(soft, axis=1) + np.sin(angle) * np.gradient(soft, axis=0)
    slope = slope / (np.abs(slope).max() + 1e-6)
    return scene.image + np.float32(rng.uniform(0.6, 0.9)) * slope[..., None]


def recolour(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """The colour channels swapped."""
    order = [(1, 2, 0), (2, 0, 1), (1, 0, 2), (2, 1, 0)][rng.integers(4)]
    return _rough(rng, scene.image[..., order] * rng.uniform(0.5, 1.5, 3).astype(np.float32))


def invert(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """The negative."""
    return _rough(rng, 1 - scene.image)


def scrape(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Fine parallel scratches."""
    x, y = grid(mask.shape[0])
    u, _ = place(x, y, rng.uniform(0, np.pi), 2 / rng.uniform(14, 24))
    tone = 0.95 if _surface(scene, mask).mean() < 0.55 else 0.05
    return mix(scene.image, np.float32(tone), (np.sin(2 * np.pi * u) * 0.5 + 0.5).astype(np.float32))


def fade(rng: np.random.Generator, scene: Scene, mask: np.ndarray) -> np.ndarray:
    """Grey."""
    grey = np.broadcast_to(scene.image.mean(2, keepdims=True), scene.image.shape)
    shift = rng.uniform(0.15, 0.35) * (1 if grey[mask].mean() < 0.5 else -1)
    return _rough(rng, grey + np.float32(shift))


Where = Callable[[np.random.Generator, np.ndarray, float], np.ndarray]
What = Callable[[np.random.Generator, Scene, np.ndarray], np.ndarray]
WHERE: dict[str, Where] = {
    f.__name__: f for f in (blob, oval, patch, shard, line, curve, crack, spots, band, bite, end, wedge, loop, burst)
}
WHAT: dict[str, What] = {
    f.__name__: f
    for f in (
        paint,
        stain,
        burn,
        darken,
        bleach,
        remove,
        static,
        mottle,
        displace,
        swirl,
        smear,
        dent,
        recolour,
        invert,
        scrape,
        fade,
    )
}


def add_defect(
    rng: np.random.Generator, scene: Scene, where: str, what: str, tries: int = 8, fine: bool = False
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The scene with one defect, a fine one if asked for.

    Returns: image (H, W, 3) float32, mask (H, W) bool (they differ only where the mask is set), and whether the defect
    is large and visible enough; if no try is, the most visible one comes back.
    """
    best, best_change = None, -1.0
    for _ in range(tries):
        scale = rng.uniform(*FINE_SCALE) if fine else 1.0
        mask = WHERE[where](rng, scene.region, scale) & scene.region
        if not (FINE_AREA if fine else MIN_AREA) <= mask.mean() <= MAX_AREA:
            continue
        changed = np.clip(WHAT[what](rng, scene, mask), 0, 1)
        image = np.where(mask[..., None], changed, scene.image)
        change = float(np.abs(image - scene.image).mean(2)[mask].mean())
        if change > best_change:
            best, best_change = (image, mask), change
        if change >= MIN_CHANGE:
            return *best, True
    if best is None:
        return scene.image, np.zeros_like(scene.region), False
    return *best, False


# ---------------------------------------------------------------- kinds

KINDS: dict[str, dict[str, tuple[str, str]]] = {  # of the rendered data sets; pre-training never draws these pairs
    "auxiliary": {
        "scratched": ("line", "bleach"),
        "stained": ("blob", "stain"),
        "punctured": ("oval", "remove"),
        "cracked": ("crack", "darken"),
        "chipped": ("bite", "remove"),
        "misprinted": ("patch", "invert"),
        "rubbed": ("shard", "scrape"),
        "mouldy": ("spots", "mottle"),
    },
    "validation": {
        "fibre": ("curve", "paint"),
        "torn": ("shard", "remove"),
        "faded": ("oval", "bleach"),
        "dented": ("blob", "dent"),
        "smudged": ("patch", "smear"),
        "rusty": ("blob", "mottle"),
    },
    "target": {
        "scorched": ("blob", "burn"),
        "snapped": ("end", "remove"),
        "taped": ("band", "paint"),
        "slit": ("wedge", "remove"),
        "spattered": ("spots", "paint"),
        "shattered": ("burst", "bleach"),
        "corroded": ("oval", "mottle"),
        "discoloured": ("patch", "recolour"),
    },
}
HELD_OUT = {pair for kinds in KINDS.values() for pair in kinds.values()}
FREE_KINDS = [(where, what) for where in WHERE for what in WHAT if (where, what) not in HELD_OUT]
