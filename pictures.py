"""Pictures from arrays: heat maps, contours, overlays and panels, for test.py, predict.py, the report and the figures.

Pictures are (H, W, 3) uint8 RGB, maps (H, W) float32 of the same size.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploy.maps import resize_map

THUMBNAIL = 224  # pixels, the longer side of each half
CONTOUR = (255, 255, 255)
INK, PAPER = (255, 255, 255), (0, 0, 0)


class Scale:
    """One scale of colours for the maps of all pictures, from blue over green to red.

    Args:
        low, high: values with the coldest and the warmest colour; what lies beyond has these colours, too.
        middle: the value in the middle of the colours, such as the pixel threshold: so a picture without anomalous
            pixels has cold colours only. None: halfway.
    """

    def __init__(self, low: float, high: float, middle: float | None = None) -> None:
        self.low, self.high = low, max(high, low + 1e-12)
        self.middle = middle if middle is not None and low < middle < high else (self.low + self.high) / 2

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Colours (H, W, 3) of a map (H, W)."""
        places = np.interp(values, (self.low, self.middle, self.high), (0, 127.5, 255))
        return cv2.applyColorMap(np.rint(places).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]


def scale_around(threshold: float | None, usual: float | None, highest: float) -> Scale:
    """The scale for maps that are compared with a threshold.

    The threshold is the middle of the colours, and usual values (those of normal pictures, below it) lie as far from it
    as from the coldest colour. Without them it is the whole range of maps, from 0 to `highest`.
    """
    if threshold is None or usual is None:
        return Scale(0, highest, threshold)
    reach = 2 * max(threshold - usual, 0.01 * highest)
    return Scale(max(0, threshold - reach), min(highest, threshold + reach), threshold)


def blend(picture: np.ndarray, colours: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """A picture with the colours of its map over it; strength 0 shows the picture alone, 1 the colours."""
    return cv2.addWeighted(picture, 1 - strength, np.ascontiguousarray(colours), strength, 0)


def overlay(
    picture: np.ndarray,
    values: np.ndarray,
    scale: Scale,
    threshold: float | None = None,
    text: str = "",
    bar: bool = True,
    strength: float = 0.5,
) -> np.ndarray:
    """A picture with its map over it, contours at the threshold, and with `bar` text and colour bar, at its size.

    strength: see `blend`.
    """
    shown = blend(picture, scale.colours(values), strength)
    if threshold is not None:
        outlines, _ = cv2.findContours(
            (values > threshold).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(shown, outlines, -1, CONTOUR, max(1, round(min(picture.shape[:2]) / 250)))
    return annotate(shown, scale, threshold, text) if bar else shown


def annotate(shown: np.ndarray, scale: Scale, threshold: float | None, text: str) -> np.ndarray:
    """A picture with the text in its upper left corner and the colour bar at its right edge."""
    height, width = shown.shape[:2]
    font_size = max(9, round(min(height, width) / 24))
    font = ImageFont.load_default(font_size)
    image = Image.fromarray(shown)
    draw = ImageDraw.Draw(image, "RGBA")
    margin = max(2, font_size // 3)
    if text:
        box = draw.textbbox((margin, margin), text, font)
        draw.rectangle((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin), (*PAPER, 140))
        draw.text((margin, margin), text, INK, font)

    bar_height, bar_width = round(0.5 * height), max(3, font_size // 2)
    right, top = width - margin, (height - bar_height) // 2
    left = right - bar_width
    steps = np.linspace(scale.high, scale.low, bar_height)[:, None].repeat(bar_width, axis=1)
    image.paste(Image.fromarray(scale.colours(steps)), (left, top))
    draw.rectangle((left - 1, top - 1, right, top + bar_height), outline=INK)
    for value in {scale.low, scale.high} | ({threshold} if threshold is not None else set()):
        if scale.low <= value <= scale.high:
            row = top + round((scale.high - value) / (scale.high - scale.low) * (bar_height - 1))
            label = f"{value:.2f}".rstrip("0").rstrip(".")
            draw.line((left - 3, row, right - 1, row), INK)
            draw.text((left - 5, row), label, INK, font, anchor="rm", stroke_width=1, stroke_fill=PAPER)
    return np.asarray(image)


def thumbnail(picture: np.ndarray, values: np.ndarray, scale: Scale, threshold: float | None = None) -> bytes:
    """A small JPEG of a picture and of its overlay side by side."""
    height, width = picture.shape[:2]
    shrink = min(1, THUMBNAIL / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    shown = overlay(small, resize_map(values, *size), scale, threshold, bar=False)
    _, content = cv2.imencode(".jpg", np.hstack([small, shown])[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return content.tobytes()


def panel(picture: np.ndarray, mask: np.ndarray | None, values: np.ndarray, scale: Scale) -> np.ndarray:
    """Picture, mask (None: no masks) and heat map side by side."""
    parts = [picture, blend(picture, scale.colours(values))]
    if mask is not None:
        parts.insert(1, np.repeat(mask.astype(np.uint8)[:, :, None] * 255, 3, axis=2))
    return np.hstack(parts)


def find_regions(values: np.ndarray, threshold: float) -> list[dict]:
    """The regions of a map above the threshold (8-connected), from top to bottom.

    Each has bbox [x, y, width, height] and area in pixels, score (the highest value in it), and segmentation (its
    outline as polygons [x1, y1, x2, y2, ...] through the centres of its border pixels; holes are filled).
    """
    above = (values > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    regions = []
    for number in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[number])
        part = labels[top : top + height, left : left + width] == number
        outlines, _ = cv2.findContours(
            part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
        )
        polygons = [outline.reshape(-1).tolist() for outline in outlines if len(outline) > 2]
        if not polygons:  # too thin for a polygon
            right, bottom = left + width, top + height
            polygons = [[left, top, right, top, right, bottom, left, bottom]]
        score = float(values[top : top + height, left : left + width][part].max())
        regions.append({"bbox": [left, top, width, height], "area": area, "score": score, "segmentation": polygons})
    return regions
