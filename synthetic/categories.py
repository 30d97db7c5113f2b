"""The named categories of the rendered data sets, each with a generator of its own; pre-training draws none of them."""

from collections.abc import Callable

import numpy as np

from synthetic.world import (
    Scene,
    box,
    circle,
    cover,
    fold,
    grid,
    object_scene,
    petals,
    pick_colour,
    place,
    polygon,
    profile,
    related_colour,
    segment,
    step,
    texture_scene,
    triangle,
    wave,
)

Generator = Callable[[np.random.Generator, int], Scene]


def _pose(rng: np.random.Generator, size: int, scale: float = 0.8, turn: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Placed coordinates of an object: slightly moved and scaled, turned by at most `turn` radians."""
    x, y = grid(size)
    return place(x, y, rng.uniform(-turn, turn), scale * rng.uniform(0.93, 1.05), tuple(rng.uniform(-0.05, 0.05, 2)))


def _cells(rng: np.random.Generator, size: int, cells: float, turn: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates with about `cells` cells across the picture, at a random offset."""
    x, y = grid(size)
    return place(x, y, rng.uniform(-turn, turn), 2 / (cells * rng.uniform(0.92, 1.08)), tuple(rng.uniform(-1, 1, 2)))


def _near(rng: np.random.Generator, colour: tuple[float, float, float]) -> np.ndarray:
    return np.clip(np.array(colour) + rng.uniform(-0.06, 0.06, 3), 0, 1).astype(np.float32)


# ---------------------------------------------------------------- auxiliary: prompts are trained on these


def mug(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.8, 0.08)
    handle = np.abs(circle(x - 0.6, y, 0.38)) - 0.1
    distance = np.minimum(box(x + 0.15, y, 0.65, 0.85, 0.12), handle)
    colour = pick_colour(rng)
    stripe = cover(np.maximum(np.abs(y) - 0.22, np.abs(x + 0.15) - 0.65))
    return object_scene(rng, distance, "mug", colour, [(stripe, related_colour(rng, colour[1], 0.3))])


def wheel(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.85, np.pi)
    fx, fy = fold(x, y, 6)
    spokes = np.maximum(np.abs(fy) - 0.09, fx - 0.8)
    distance = np.minimum(np.minimum(np.abs(circle(x, y, 0.82)) - 0.18, circle(x, y, 0.25)), spokes)
    tyre = cover(0.72 - np.hypot(x, y))
    return object_scene(rng, distance, "wheel", pick_colour(rng), [(tyre, _near(rng, (0.2, 0.2, 0.22)))])


def button(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.82, np.pi)
    fx, fy = fold(x, y, 4)
    distance = np.maximum(circle(x, y, 1), -circle(fx - 0.3, fy, 0.12))
    colour = pick_colour(rng)
    return object_scene(
        rng, distance, "button", colour, [(cover(0.72 - np.hypot(x, y)), related_colour(rng, colour[1], 0.2))]
    )


def leaf(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.9, np.pi)
    distance = np.maximum(np.hypot(x, y - 0.75) - 1.25, np.hypot(x, y + 0.75) - 1.25)
    veins = np.minimum(np.abs(y) - 0.035, np.abs(triangle(2.2 * (x - 0.8 * np.abs(y))) - 0.1) / 2.2 - 0.02)
    green = _near(rng, (0.25, 0.6, 0.2))
    return object_scene(rng, distance, "leaf", ("green", green), [(cover(veins), related_colour(rng, green, 0.2))], 0.2)


def envelope(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.85, 0.3)
    distance = box(x, y, 1, 0.68, 0.04)
    flap = cover(np.abs(y + 0.68 - 0.75 * (1 - np.abs(x))) - 0.035)
    stamp = cover(box(x, y - 0.42, 0.3, 0.1, 0.02))
    colour = pick_colour(rng)
    dark = related_colour(rng, colour[1], 0.35)
    return object_scene(rng, distance, "envelope", colour, [(flap, dark), (stamp, dark)], 0.15)


def battery(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.88, np.pi)
    distance = np.minimum(box(x + 0.06, y, 0.9, 0.42, 0.06), box(x - 0.9, y, 0.1, 0.16, 0.03))
    colour = pick_colour(rng)
    cap = cover(0.35 - x)
    return object_scene(rng, distance, "battery", colour, [(cap, _near(rng, (0.8, 0.6, 0.25)))])


def basket(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 8)
    over = (np.floor(u) + np.floor(v)) % 2
    field = np.where(over > 0, triangle(v), triangle(u))
    return texture_scene(
        rng, step(field - 0.45, 1.5), "basket", ("brown", _near(rng, (0.5, 0.33, 0.16))), _near(rng, (0.8, 0.62, 0.38))
    )


def parquet(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 4)
    flip = (np.floor(u) + np.floor(v)) % 2
    gap = np.minimum(triangle(np.where(flip > 0, 3 * u, 3 * v)), 3 * np.minimum(triangle(u), triangle(v)))
    field = np.clip(step(0.25 - gap, 2) + 0.25 * flip, 0, 1)
    return texture_scene(rng, field, "parquet", ("brown", _near(rng, (0.72, 0.5, 0.3))), _near(rng, (0.42, 0.26, 0.14)))


def denim(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 14, 0.05)
    field = step(wave(u + v) + 0.5 * wave(3 * u), 0.6)
    return texture_scene(rng, field, "denim", ("blue", _near(rng, (0.2, 0.3, 0.55))), _near(rng, (0.42, 0.52, 0.75)))


def lattice(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 7)
    ring = np.abs(np.hypot(triangle(u), triangle(v)) - 0.75) - 0.16
    return texture_scene(rng, step(-ring, 4), "lattice", pick_colour(rng))


# ---------------------------------------------------------------- validation: recipe variants are chosen on these


def plate(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.86, np.pi)
    colour = pick_colour(rng)
    rim = cover(np.abs(circle(x, y, 0.68)) - 0.06)
    return object_scene(rng, circle(x, y, 1), "plate", colour, [(rim, related_colour(rng, colour[1], 0.35))])


def pencil(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.92, np.pi)
    distance = np.maximum(np.abs(y) - np.clip(0.6 * (1 - x), 0, 0.3), np.abs(x) - 1)
    wood, tip, rubber = cover(0.5 - x), cover(0.85 - x), cover(x + 0.75)
    layers = [
        (wood, _near(rng, (0.85, 0.7, 0.5))),
        (tip, _near(rng, (0.15, 0.15, 0.15))),
        (rubber, _near(rng, (0.85, 0.5, 0.5))),
    ]
    return object_scene(rng, distance, "pencil", pick_colour(rng), layers)


def domino(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.88, np.pi / 2)
    distance = box(x, y, 1, 0.52, 0.08)
    pips = np.hypot(np.abs(np.abs(x) - 0.5) - 0.22, np.abs(y) - 0.22) - 0.1
    line = np.abs(x) - 0.03
    ink = _near(rng, (0.1, 0.1, 0.1))
    return object_scene(
        rng, distance, "domino", ("white", _near(rng, (0.88, 0.85, 0.78))), [(cover(np.minimum(pips, line)), ink)]
    )


def fish(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.9, 0.2)
    body = np.maximum(np.hypot(x + 0.2, y - 0.5) - 0.95, np.hypot(x + 0.2, y + 0.5) - 0.95)
    tail = np.maximum(np.abs(y) - 0.9 * (x - 0.25), x - 0.95)
    colour = pick_colour(rng)
    stripes = cover(0.12 - triangle(1.6 * x) * 0.3) * (x > -0.5)
    eye = cover(circle(x + 0.62, y + 0.12, 0.09))
    layers = [(stripes, related_colour(rng, colour[1], 0.3)), (eye, np.float32([0.05, 0.05, 0.05]))]
    return object_scene(rng, np.minimum(body, tail), "fish", colour, layers)


def honeycomb(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 6)
    root = np.sqrt(3)
    ax, ay = np.mod(u, 1) - 0.5, np.mod(v, root) - root / 2
    bx, by = np.mod(u - 0.5, 1) - 0.5, np.mod(v - root / 2, root) - root / 2
    near = np.where(np.hypot(ax, ay) < np.hypot(bx, by), ax, bx), np.where(np.hypot(ax, ay) < np.hypot(bx, by), ay, by)
    hexagon = np.maximum(np.abs(near[0]), 0.5 * np.abs(near[0]) + root / 2 * np.abs(near[1]))
    return texture_scene(
        rng,
        step(hexagon - 0.4, 10),
        "honeycomb",
        ("yellow", _near(rng, (0.9, 0.68, 0.2))),
        _near(rng, (0.55, 0.35, 0.08)),
    )


def mosaic(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 9)
    shade = rng.random((64, 64), dtype=np.float32)[np.floor(v).astype(int) % 64, np.floor(u).astype(int) % 64]
    field = np.where(np.minimum(triangle(u), triangle(v)) < 0.2, 1, 0.45 * shade).astype(np.float32)
    return texture_scene(rng, field, "mosaic", pick_colour(rng))


def corduroy(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 11)
    return texture_scene(rng, 0.8 * triangle(u) ** 2 + 0.2 * step(wave(4 * v)), "corduroy", pick_colour(rng))


def netting(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 7)
    cords = np.minimum(triangle((u + v) / 2), triangle((u - v) / 2)) - 0.2
    knots = np.hypot(np.abs(triangle(u) - 1), np.abs(triangle(v) - 1)) - 0.5
    return texture_scene(rng, step(-np.minimum(cords, knots), 3), "netting", pick_colour(rng))


# ---------------------------------------------------------------- target: anomalies are found on these


def cookie(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.85, np.pi)
    fx, fy = fold(x, y, 7)
    chips = np.minimum(circle(fx - 0.6, fy, 0.12), circle(x, y, 0.14))
    dough, chocolate = _near(rng, (0.8, 0.58, 0.33)), _near(rng, (0.35, 0.2, 0.1))
    return object_scene(rng, petals(x, y, 22, 0.025, 1), "cookie", ("brown", dough), [(cover(chips), chocolate)])


def bulb(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.9, 0.25)
    distance = profile(
        x,
        y,
        np.array([-1, -0.93, -0.75, -0.4, -0.1, 0.3, 0.45, 0.85, 1]),
        np.array([0, 0.3, 0.52, 0.62, 0.55, 0.3, 0.28, 0.26, 0.1]),
    )
    socket = cover(0.38 - y)
    thread = cover(np.maximum(0.38 - y, np.abs(triangle(5 * y) - 0.2) / 10 - 0.02))
    layers = [(socket, _near(rng, (0.62, 0.62, 0.65))), (thread, _near(rng, (0.35, 0.35, 0.38)))]
    return object_scene(rng, distance, "light bulb", ("yellow", _near(rng, (0.95, 0.85, 0.5))), layers)


def nut(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.85, np.pi)
    r = np.hypot(x, y)
    distance = np.maximum(polygon(x, y, 6, 1), 0.42 - r)
    steel = _near(rng, (0.6, 0.63, 0.68))
    return object_scene(
        rng, distance, "hex nut", ("grey", steel), [(cover(np.abs(r - 0.6) - 0.04), related_colour(rng, steel, 0.25))]
    )


def capsule(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.9, np.pi)
    name, colour = pick_colour(rng)
    half = _near(rng, (0.92, 0.9, 0.86)) if colour.mean() < 0.7 else _near(rng, (0.8, 0.25, 0.2))
    seam = cover(np.abs(x) - 0.03)
    return object_scene(
        rng,
        segment(x, y, 0.6, 0.4),
        "capsule",
        (name, colour),
        [(cover(-x), half), (seam, related_colour(rng, half, 0.3))],
    )


def clock(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.86, 0.15)
    fx, fy = fold(x, y, 12)
    ticks = box(fx - 0.68, fy, 0.08, 0.035)
    hands = np.minimum(box(x - 0.2, y, 0.22, 0.05), box(x, y + 0.26, 0.045, 0.28))
    colour = pick_colour(rng)
    face, ink = _near(rng, (0.92, 0.91, 0.86)), _near(rng, (0.12, 0.12, 0.15))
    layers = [(cover(circle(x, y, 0.84)), face), (cover(np.minimum(ticks, hands)), ink)]
    return object_scene(rng, circle(x, y, 1), "clock", colour, layers, 0.2)


def padlock(rng: np.random.Generator, size: int) -> Scene:
    x, y = _pose(rng, size, 0.86, 0.15)
    arch = np.where(y < -0.35, np.abs(circle(x, y + 0.35, 0.42)), np.abs(np.abs(x) - 0.42)) - 0.13
    shackle = np.maximum(arch, y - 0.1)
    body = box(x, y - 0.4, 0.75, 0.6, 0.12)
    hole = np.minimum(circle(x, y - 0.32, 0.13), box(x, y - 0.5, 0.06, 0.18))
    name, colour = pick_colour(rng)
    steel = cover(np.maximum(shackle, -body))
    layers = [(steel, _near(rng, (0.7, 0.7, 0.72))), (cover(hole), np.float32([0.1, 0.1, 0.1]))]
    return object_scene(rng, np.minimum(shackle, body), "padlock", (name, colour), layers)


def herringbone(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 5)
    lean = np.where(np.floor(u) % 2 > 0, u, -u)
    field = np.maximum(step(0.3 - triangle(2 * (v + lean)), 2), step(0.12 - triangle(u), 3))
    return texture_scene(rng, field, "herringbone", pick_colour(rng))


def knit(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 8)
    side = np.mod(u, 1) - 0.5
    stitch = np.hypot(0.9 * (np.abs(side) - 0.25), np.mod(v - 0.9 * np.abs(side), 1) - 0.5) - 0.34
    return texture_scene(rng, step(stitch, 2.5), "knit", pick_colour(rng))


def roof(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 7, 0.05)
    low = np.zeros_like(u)
    for shift in (1, 0):
        row = np.floor(v) - shift
        cu = np.mod(u + 0.5 * (row % 2), 1) - 0.5
        r = np.hypot(cu, 0.62 * (v - row)) / 0.72
        low = np.where(r < 1, r, low)
    return texture_scene(
        rng, step(low - 0.72, 2.5), "roof tiles", ("red", _near(rng, (0.75, 0.32, 0.22))), _near(rng, (0.42, 0.14, 0.1))
    )


def terrazzo(rng: np.random.Generator, size: int) -> Scene:
    u, v = _cells(rng, size, 8)
    best = np.full_like(u, 9)
    shift = rng.uniform(-0.25, 0.25, (2, 64, 64)).astype(np.float32)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            cu, cv = np.floor(u) + column, np.floor(v) + row
            pick = cv.astype(int) % 64, cu.astype(int) % 64
            best = np.minimum(best, np.abs(u - cu - 0.5 - shift[0][pick]) + np.abs(v - cv - 0.5 - shift[1][pick]))
    return texture_scene(rng, step(0.38 - best, 5), "terrazzo", pick_colour(rng))


CATEGORIES: dict[str, dict[str, Generator]] = {
    "auxiliary": {
        f.__name__: f for f in (mug, wheel, button, leaf, envelope, battery, basket, parquet, denim, lattice)
    },
    "validation": {f.__name__: f for f in (plate, pencil, domino, fish, honeycomb, mosaic, corduroy, netting)},
    "target": {f.__name__: f for f in (cookie, bulb, nut, capsule, clock, padlock, herringbone, knit, roof, terrazzo)},
}
