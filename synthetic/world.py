"""Scenes without end: shapes, patterns and materials drawn from continuous families, rendered with numpy.

A scene lives on the square [-1, 1] x [-1, 1] (y down) and is rendered at any size from the same random draws.
Shapes are signed distances (negative inside), patterns are fields in [0, 1] that mix two colours.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

cv2.setNumThreads(0)

HUES = {
    "red": 0.0,
    "orange": 0.07,
    "yellow": 0.14,
    "green": 0.33,
    "teal": 0.48,
    "blue": 0.6,
    "purple": 0.76,
    "pink": 0.92,
}
GREYS = {"white": 0.92, "grey": 0.6, "black": 0.2}


@dataclass
class Scene:
    """A clean image and what a defect needs to know about it."""

    image: np.ndarray  # (H, W, 3) float32 in [0, 1]
    region: np.ndarray  # (H, W) bool: the object's silhouette, everything for a texture
    behind: np.ndarray  # (H, W, 3) float32: what a hole shows
    noun: str
    colour: str


# ---------------------------------------------------------------- drawing


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as x, y, each (size, size)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    return np.meshgrid(axis, axis)


def place(
    x: np.ndarray, y: np.ndarray, angle: float = 0.0, scale: float = 1.0, at: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a shape that is moved to `at`, turned by `angle` and scaled."""
    x, y = (x - at[0]) / scale, (y - at[1]) / scale
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def fold(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates folded into the first of `count` equal sectors around the centre, which points along +x."""
    sector = 2 * np.pi / count
    angle = np.mod(np.arctan2(y, x) + sector / 2, sector) - sector / 2
    r = np.hypot(x, y)
    return r * np.cos(angle), r * np.sin(angle)


def cover(distance: np.ndarray) -> np.ndarray:
    """Antialiased coverage (H, W) in [0, 1] of the inside of a signed distance."""
    return np.clip(0.5 - distance * (distance.shape[0] / 2), 0, 1)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth random field (size, size) in about [0, 1] with `cells` bumps across."""
    return cv2.resize(rng.random((cells, cells), dtype=np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def fractal_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Random field (size, size) in [0, 1] with bumps at several scales, as stone, soil or cast metal has them."""
    cells, roughness = int(rng.integers(2, 8)), rng.uniform(0.4, 0.9)
    field, weight = np.full((size, size), 0.5, np.float32), 1.0
    while cells <= 48:
        field += np.float32(weight) * (smooth_noise(rng, size, cells) - 0.5)
        cells, weight = 2 * cells, roughness * weight
    return np.clip(field, 0, 1)


def mix(base: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`over` (a colour or an image) laid on `base` (H, W, 3) with opacity alpha (H, W)."""
    return base + (over - base) * alpha[..., None]


def pick_colour(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A colour and its name."""
    names = [*HUES, *GREYS]
    name = names[rng.integers(len(names))]
    if name in GREYS:
        return name, np.clip(GREYS[name] + rng.uniform(-0.06, 0.06, 3), 0, 1).astype(np.float32)
    hue = (HUES[name] + rng.uniform(-0.03, 0.03)) % 1
    return name, np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.45, 0.9), rng.uniform(0.55, 0.95)), np.float32)


def related_colour(rng: np.random.Generator, colour: np.ndarray, strength: float = 0.25) -> np.ndarray:
    """A second colour of the same material: lighter or darker, with a slight change of hue."""
    sign = 1 if colour.mean() < 0.5 else -1
    shift = sign * rng.uniform(0.6, 1.2) * strength + rng.uniform(-0.06, 0.06, 3)
    return np.clip(colour + shift, 0.02, 0.98).astype(np.float32)


def other_colour(rng: np.random.Generator, colour: np.ndarray, distance: float = 0.4) -> np.ndarray:
    """A colour that stands out from `colour`: at least `distance` apart on average over the channels."""
    for _ in range(50):
        candidate = rng.random(3).astype(np.float32)
        if np.abs(candidate - colour).mean() > distance:
            return candidate
    return (colour < 0.5).astype(np.float32)


# ---------------------------------------------------------------- shapes (signed distances, about 1 in radius)


def circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Disc."""
    return np.hypot(x, y) - radius


def box(x: np.ndarray, y: np.ndarray, half_x: float, half_y: float, rounding: float = 0.0) -> np.ndarray:
    """Rectangle with half sides half_x and half_y and rounded corners."""
    dx, dy = np.abs(x) - (half_x - rounding), np.abs(y) - (half_y - rounding)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - rounding


def segment(x: np.ndarray, y: np.ndarray, half_length: float, radius: float) -> np.ndarray:
    """A rod along x with round ends."""
    return np.hypot(np.maximum(np.abs(x) - half_length, 0), y) - radius


def polygon(x: np.ndarray, y: np.ndarray, sides: int, radius: float) -> np.ndarray:
    """Regular polygon with a corner on top; `radius` reaches the corners."""
    sector = 2 * np.pi / sides
    angle = np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2
    return np.hypot(x, y) * np.cos(angle) - radius * np.cos(np.pi / sides)


def petals(x: np.ndarray, y: np.ndarray, count: int, depth: float, radius: float, sharp: float = 1.0) -> np.ndarray:
    """A disc whose rim swings `count` times by `depth`: flowers, cogs (sharp > 1 squares the teeth), bottle caps."""
    wave = np.clip(sharp * np.cos(count * np.arctan2(y, x)), -1, 1)
    return np.hypot(x, y) - radius * (1 - depth + depth * wave)


def super_shape(x: np.ndarray, y: np.ndarray, turns: int, n1: float, n2: float, n3: float) -> np.ndarray:
    """Gielis' superformula, scaled to radius 1: rounded polygons, stars, lenses, egg forms."""
    angle = np.arctan2(y, x) * np.float32(turns / 4)
    radius = (np.abs(np.cos(angle)) ** n2 + np.abs(np.sin(angle)) ** n3 + 1e-6) ** np.float32(-1 / n1)
    return np.hypot(x, y) - radius / radius.max()


def profile(x: np.ndarray, y: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """A turned body, symmetric in x: half widths at heights from -1 (top) to 1, smoothly joined."""
    rows = np.interp(np.linspace(-1, 1, 64), heights, widths)
    rows = np.convolve(np.pad(rows, 2, mode="edge"), [0.1, 0.2, 0.4, 0.2, 0.1], mode="valid")
    half = np.interp(y, np.linspace(-1, 1, 64), rows).astype(np.float32)
    return np.maximum(np.abs(x) - half, np.abs(y) - 1)


# ---------------------------------------------------------------- patterns (fields in [0, 1]; one cell is 1 x 1)


def step(value: np.ndarray, sharp: float = 3.0) -> np.ndarray:
    """A field cut at zero, with soft edges."""
    return np.clip(0.5 + sharp * value, 0, 1)


def wave(u: np.ndarray) -> np.ndarray:
    """Sine of period 1."""
    return np.sin(np.float32(2 * np.pi) * u)


def triangle(u: np.ndarray) -> np.ndarray:
    """Triangle wave in [0, 1], period 1, 0 at the integers."""
    return 1 - np.abs(2 * (u - np.floor(u)) - 1)


def stripes(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Straight stripes across u."""
    return step(wave(u) - rng.uniform(-0.6, 0.6), rng.uniform(0.5, 2))


def checks(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Chequerboard."""
    return step(wave(u / 2) * wave(v / 2), rng.uniform(1, 3))


def dots(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dots in rows, sometimes staggered."""
    u = u + 0.5 * (np.floor(v) % 2) * (rng.random() < 0.5)
    return step(rng.uniform(0.22, 0.38) - np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5), 6)


def mesh(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Square grid of lines."""
    return step(rng.uniform(0.2, 0.45) - np.minimum(triangle(u), triangle(v)), 3)


def bricks(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brickwork."""
    u = u / rng.uniform(1.4, 2.2) + 0.5 * (np.floor(v) % 2)
    return step(rng.uniform(0.15, 0.25) - np.minimum(1.7 * triangle(u), triangle(v)), 3)


def waves(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Wavy stripes."""
    return step(wave(u + rng.uniform(0.15, 0.45) * wave(v * rng.uniform(0.3, 0.7))), rng.uniform(0.5, 2))


def zigzags(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zigzag stripes."""
    return step(wave(u + rng.uniform(0.4, 1.0) * triangle(v * rng.uniform(0.4, 0.8))), rng.uniform(0.5, 2))


def plaid(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stripes both ways."""
    return 0.5 * (stripes(u, v, rng) + stripes(v, u, rng))


def circles(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rings around the origin."""
    return step(wave(np.hypot(u, v)), rng.uniform(0.5, 2))


def diamonds(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lozenges."""
    return step(triangle(u) + triangle(v) - rng.uniform(0.8, 1.2), rng.uniform(1, 4))


def clouds(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soft blotches."""
    return smooth_noise(rng, u.shape[0], rng.integers(6, 14))


def grain(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bent stripes, as in wood."""
    bend = cv2.resize(rng.random((4, 6), dtype=np.float32), u.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return step(wave(u + rng.uniform(0.3, 1.0) * bend), rng.uniform(0.3, 0.8))


PATTERNS = {
    "striped": stripes,
    "checked": checks,
    "dotted": dots,
    "meshed": mesh,
    "bricked": bricks,
    "wavy": waves,
    "zigzag": zigzags,
    "plaid": plaid,
    "ringed": circles,
    "diamond": diamonds,
    "cloudy": clouds,
    "grained": grain,
}
Pattern = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def random_pattern(rng: np.random.Generator) -> tuple[str, Pattern]:
    """One of the pattern families, or two of them multiplied or added into one."""
    names = list(PATTERNS)
    first, second = (names[i] for i in rng.integers(len(names), size=2))
    kind = rng.random()
    if kind < 0.6 or first == second:
        return first, PATTERNS[first]
    ratio = rng.choice([1.0, 2.0])

    def both(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        one, two = PATTERNS[first](u, v, rng), PATTERNS[second](u * ratio, v * ratio, rng)
        return one * two if kind < 0.8 else 0.5 * (one + two)

    return first, both


# ---------------------------------------------------------------- composition


def backdrop(rng: np.random.Generator, size: int, colour: np.ndarray) -> np.ndarray:
    """A plain, evenly lit ground (size, size, 3) that stands apart from `colour`."""
    tone = rng.uniform(0.75, 0.97) if colour.mean() < 0.5 or rng.random() < 0.2 else rng.uniform(0.06, 0.3)
    ground = np.clip(tone + rng.uniform(-0.05, 0.05, 3), 0, 1).astype(np.float32)
    x, y = grid(size)
    light = 1 + rng.uniform(-0.06, 0.06) * x + rng.uniform(-0.06, 0.06) * y
    return ground * light[..., None]


def natural_backdrop(rng: np.random.Generator, size: int, colour: np.ndarray) -> np.ndarray:
    """A ground (size, size, 3) that stands apart from `colour`: of a rough material, sometimes patterned or black."""
    if rng.random() < 0.15:
        return np.full((size, size, 3), rng.uniform(0, 0.06), np.float32)
    ground = backdrop(rng, size, colour)
    tone = ground.mean((0, 1))
    if rng.random() < 0.25:
        _, pattern = random_pattern(rng)
        u, v = place(*grid(size), rng.uniform(0, np.pi), 2 / rng.uniform(3, 16), tuple(rng.uniform(-1, 1, 2)))
        ground = mix(ground, related_colour(rng, tone, rng.uniform(0.04, 0.15)), pattern(u, v, rng))
    return mix(ground, related_colour(rng, tone, rng.uniform(0.08, 0.35)), fractal_noise(rng, size))


def finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Slight sensor noise, clipped to [0, 1]."""
    noise = rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None]
    return np.clip(image + np.float32(rng.uniform(0.003, 0.012)) * noise, 0, 1)


def object_scene(
    rng: np.random.Generator,
    distance: np.ndarray,
    noun: str,
    colour: tuple[str, np.ndarray],
    layers: list[tuple[np.ndarray, np.ndarray]] = (),
    relief: float = 0.35,
    behind: np.ndarray | None = None,
) -> Scene:
    """An object before its ground, a plain one if none is given.

    Args:
        distance: silhouette (H, W).
        layers: (opacity (H, W), colour) painted on it.
        behind: the ground (H, W, 3).
    """
    size = distance.shape[0]
    name, base = colour
    body = np.broadcast_to(base, (size, size, 3))
    for alpha, paint in layers:
        body = mix(body, paint, alpha)
    x, y = grid(size)
    depth = np.clip(-distance / rng.uniform(0.25, 0.5), 0, 1)
    angle = rng.uniform(0, 2 * np.pi)
    side = 0.12 * (np.cos(angle) * x + np.sin(angle) * y)
    shade = 1 - rng.uniform(0.2, 1) * relief * (1 - depth) ** 2 + side
    behind = backdrop(rng, size, base) if behind is None else behind
    image = mix(behind, body * shade[..., None].astype(np.float32), cover(distance))
    return Scene(finish(rng, image), distance < 1 / size, behind, noun, name)


def texture_scene(
    rng: np.random.Generator,
    field: np.ndarray,
    noun: str,
    colour: tuple[str, np.ndarray],
    second: np.ndarray | None = None,
) -> Scene:
    """A surface that fills the picture; field (H, W) in [0, 1] mixes the colour with a second one."""
    size = field.shape[0]
    name, base = colour
    x, y = grid(size)
    light = 1 + rng.uniform(-0.1, 0.1) * x + rng.uniform(-0.1, 0.1) * y
    second = related_colour(rng, base) if second is None else second
    image = mix(np.broadcast_to(base, (size, size, 3)), second, field) * light[..., None]
    hollow = np.float32(0.05 if base.mean() > 0.35 else 0.95)
    return Scene(finish(rng, image), np.ones((size, size), bool), np.full((size, size, 3), hollow), noun, name)


# ---------------------------------------------------------------- the pre-training families


def random_texture(rng: np.random.Generator, size: int, natural: bool) -> Scene:
    """Any pattern, any colours, any scale and direction; a natural one is rough and may have no pattern at all."""
    name, pattern = random_pattern(rng)
    x, y = grid(size)
    cells = rng.uniform(2, 20) if natural else rng.uniform(4, 12)
    turn = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    field = pattern(*place(x, y, turn, 2 / cells, tuple(rng.uniform(-1, 1, 2))), rng)
    contrast = rng.uniform(0.15, 0.45)
    if natural:
        if rng.random() < 0.4:
            name, field, contrast = "rough", fractal_noise(rng, size), rng.uniform(0.05, 0.4)
        else:
            field = np.clip(field + rng.uniform(0.2, 1) * (fractal_noise(rng, size) - 0.5), 0, 1)
    noun = f"{name} {rng.choice(['fabric', 'wall', 'floor', 'sheet', 'surface', 'texture'])}"
    colour = pick_colour(rng)
    return texture_scene(rng, field, noun, colour, related_colour(rng, colour[1], contrast))


def random_silhouette(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[str, np.ndarray]:
    """A noun and the signed distance of a shape of about radius 1 in the placed coordinates x, y."""
    kind = rng.integers(9)
    if kind == 0:
        stretch = rng.uniform(0.65, 1)
        return ("disc" if stretch > 0.92 else "egg"), circle(x, y / stretch, 1)
    if kind == 1:
        half = rng.uniform(0.3, 1)
        return ("block" if half > 0.7 else "bar"), box(x, y, 1, half, rng.uniform(0.02, 0.3) * half)
    if kind == 2:
        sides = int(rng.integers(3, 9))
        noun = {3: "triangle", 4: "card", 5: "badge"}.get(sides, "medal")
        return noun, polygon(x, y, sides, 1) - rng.uniform(0, 0.1)
    if kind == 3:
        count = int(rng.integers(3, 16))
        return ("rosette" if count < 8 else "cog"), petals(x, y, count, rng.uniform(0.04, 0.2), 1, rng.uniform(0.8, 4))
    if kind == 4:
        inner = rng.uniform(0.3, 0.6)
        outer = circle(x, y, 1) if rng.random() < 0.5 else box(x, y, 0.95, 0.95, rng.uniform(0.05, 0.4))
        return "ring", np.maximum(outer, -circle(x, y, inner))
    if kind == 5:
        radius = rng.uniform(0.25, 0.55)
        return "rod", segment(x, y, 1 - radius, radius)
    if kind == 6:
        turns = int(rng.integers(2, 8))
        n1, n2, n3 = rng.uniform(0.8, 6), rng.uniform(1, 6), rng.uniform(1, 6)
        return "token", super_shape(x, y, turns, n1, n2, n3)
    if kind == 7:
        heights = np.array([-1, -0.55, -0.3, 0.1, 0.6, 1])
        widths = rng.uniform(0.25, 0.75, 6)
        return ("vase" if widths[0] > widths[3] else "flask"), profile(x, y, heights, widths)
    bars = box(x, y, 1, rng.uniform(0.25, 0.5), 0.05), box(x, y, rng.uniform(0.25, 0.5), 1, 0.05)
    return "cross", np.minimum(*bars)


def random_feature(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Opacity (H, W) of a regular feature of a clean body: rim, core, dots, band, cap, label, ticks, hands, emblem."""
    kind, radius = rng.integers(13), rng.uniform(0.25, 0.65)
    away = tuple(rng.uniform(-0.5, 0.5, 2) * [(0, 1), (1, 0), (1, 1)][rng.integers(3)])
    if kind == 0:
        return cover(-distance - rng.uniform(0.06, 0.2))
    if kind == 1:
        return cover(circle(x, y, radius))
    if kind == 2:
        fx, fy = fold(x, y, int(rng.integers(3, 13)))
        return cover(circle(fx - radius, fy, rng.uniform(0.06, 0.15)))
    if kind == 3:
        return cover(np.abs((x if rng.random() < 0.5 else y) - rng.uniform(-0.5, 0.5)) - rng.uniform(0.03, 0.25))
    if kind == 4:
        u, v = place(x, y, 0, 1, away)
        return cover(box(u, v, rng.uniform(0.1, 0.5), rng.uniform(0.08, 0.4), 0.03))
    if kind == 5:
        return cover(np.abs(circle(x, y, radius)) - rng.uniform(0.03, 0.1))
    if kind == 6:
        _, fy = fold(x, y, int(rng.integers(2, 9)))
        return cover(np.abs(fy) - rng.uniform(0.03, 0.08))
    if kind == 7:
        return cover((x if rng.random() < 0.5 else y) - rng.uniform(-0.8, 0.2))
    if kind == 8:
        rows, columns, gap = rng.integers(1, 5), rng.integers(1, 5), rng.uniform(0.3, 0.5)
        u = np.abs(x - gap * np.clip(np.round(x / gap + rows % 2 / 2) - rows % 2 / 2, -rows / 2, rows / 2))
        v = np.abs(y - gap * np.clip(np.round(y / gap + columns % 2 / 2) - columns % 2 / 2, -columns / 2, columns / 2))
        return cover(np.hypot(u, v) - rng.uniform(0.06, 0.13))
    if kind == 9:
        u, v = place(np.abs(x) if rng.random() < 0.5 else x, y, 0, 1, away)
        return cover(circle(u, v, rng.uniform(0.07, 0.2)))
    if kind == 10:
        fx, fy = fold(x, y, int(rng.integers(6, 25)))
        return cover(box(fx - 0.7, fy, rng.uniform(0.05, 0.12), rng.uniform(0.025, 0.05)))
    if kind == 11:
        first, second = (place(x, y, turn) for turn in rng.choice(8, 2, replace=False) * np.pi / 4)
        hands = [box(u - 0.25, v, rng.uniform(0.2, 0.35), rng.uniform(0.03, 0.07)) for u, v in (first, second)]
        return cover(np.minimum(*hands))
    scale = rng.uniform(0.15, 0.35)
    return cover(random_silhouette(rng, *place(x, y, rng.choice([0, np.pi / 2]), scale, away))[1] * scale)


def random_layers(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, distance: np.ndarray, base: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The clean paint of a body: perhaps a pattern, and up to three regular features."""
    layers = []
    if rng.random() < 0.35:
        _, pattern = random_pattern(rng)
        u, v = place(x, y, rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)]), 1 / rng.uniform(2, 5))
        layers.append((pattern(u, v, rng), related_colour(rng, base, rng.uniform(0.12, 0.35))))
    for _ in range(rng.integers(0, 4)):
        kind = rng.random()
        if kind < 0.55:
            paint = related_colour(rng, base, rng.uniform(0.2, 0.5))
        elif kind < 0.8:
            paint = pick_colour(rng)[1]
        else:
            paint = np.full(3, rng.choice([0.08, 0.15, 0.9]), np.float32)
        layers.append((random_feature(rng, x, y, distance), paint))
    return layers


def random_object(rng: np.random.Generator, size: int, natural: bool) -> Scene:
    """Any silhouette, colour, pattern and set of regular features at any angle, sometimes with a second part.

    A natural one is of a rough material and lies on one.
    """
    x, y = grid(size)
    turn, scale = rng.choice([0, rng.uniform(0, 2 * np.pi)]), rng.uniform(0.6, 0.88)
    x, y = place(x, y, turn, scale, tuple(rng.uniform(-0.1, 0.1, 2)))
    noun, distance = random_silhouette(rng, x, y)
    colour = pick_colour(rng)
    layers = random_layers(rng, x, y, distance, colour[1])
    if natural and rng.random() < 0.7:
        layers.append((fractal_noise(rng, size), related_colour(rng, colour[1], rng.uniform(0.05, 0.35))))
    if rng.random() < 0.35:  # a handle, a tail, a cap
        scale = rng.uniform(0.3, 0.55)
        at = [(0.0, -0.75), (0.0, 0.75), (-0.75, 0.0), (0.75, 0.0)][rng.integers(4)]
        part = random_silhouette(rng, *place(x, y, rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]), scale, at))[1] * scale
        alpha = cover(part) * (cover(-distance) if rng.random() < 0.5 else 1)
        layers.append((alpha, colour[1] if rng.random() < 0.4 else pick_colour(rng)[1]))
        distance = np.minimum(distance, part)
    behind = natural_backdrop(rng, size, colour[1]) if natural else None
    return object_scene(rng, distance * 0.75, noun, colour, layers, behind=behind)


def random_scene(rng: np.random.Generator, size: int, natural: bool) -> Scene:
    """A scene of the pre-training world, an object or a texture: a drawing, or with materials as photographs show."""
    random_kind = random_texture if rng.random() < 0.35 else random_object
    return random_kind(rng, size, natural)
