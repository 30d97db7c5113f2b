"""Image and mask files as arrays of 8-bit colours and of marks. NumPy and Pillow alone.

An image is read as a viewer shows it; `load_released` reads it as the authors' released code does.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from AnomalyCLIP_lib.errors import InputError, impostor, shown

# Pillow's words on odd files; what cannot be read becomes an ImageError.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright, 5 to 8 swap width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Ranges of values that instruments and programs give, the smallest first; (-1024, 3071) is that of CT.
USUAL_RANGES = (
    (0, 1), (-1, 1), (0, 255), (0, 1023), (-1024, 3071), (0, 4095), (0, 16383), (-32768, 32767), (0, 65535),
)  # fmt: skip
PROBED = 8  # images that are looked at for a warning
ABOVE = 0.05  # by so much of its width may values exceed a usual range: they are shown black or white


class ImageError(InputError):
    """An image or mask that cannot be used; the message is one line that names the file.

    A DataLoader re-raises what happened in a worker as `type(error)(text of the traceback)`. The last line of that
    text is the original message, so keeping only the last line gives the same error with and without workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition("\n")[2].removeprefix(f"{__name__}.{type(self).__name__}: "))


def load_image(path: str | os.PathLike, value_range: tuple[float, float] | None = None) -> Image.Image:
    """The image at `path` as 8-bit RGB, see `as_rgb`.

    Raises ImageError for a file that cannot be read as an image, or has more pixels than Pillow's limit
    (PIL.Image.MAX_IMAGE_PIXELS, 89 million).
    """
    with opened(path) as image:
        return as_rgb(image, value_range)


def as_rgb(image: Image.Image, value_range: tuple[float, float] | None = None) -> Image.Image:
    """An image as 8-bit RGB, the way a viewer shows it.

    The EXIF orientation is applied and transparency is put on white. Grey values of more than 8 bits are scaled to
    8 bits: black and white are the values of `value_range`, else the ends of the range of their type, or for floating
    point numbers of the smallest usual range that holds them.
    """
    upright = ImageOps.exif_transpose(image)
    if is_deep(upright):
        return Image.fromarray(to_8_bits(upright, value_range)).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")


def load_released(path: str | os.PathLike, image_size: int) -> Image.Image:
    """The image at `path` as the released code reads it: (image_size, image_size) RGB, resized in the file's own mode.

    So palettes and 1-bit images are resized by nearest neighbour, alpha is dropped, values above 255 are cut off, and
    an EXIF orientation is ignored (but for TIFF files, which Pillow turns itself). Raises ImageError like load_image.
    """
    with opened(path) as image:
        return image.resize((image_size, image_size), Image.Resampling.BICUBIC).convert("RGB")


def load_mask(
    path: str | os.PathLike,
    size: int | tuple[int, int],
    threshold: float = 0,
    image_path: str | os.PathLike | None = None,
    released: bool = False,
) -> np.ndarray:
    """The mask at `path` as float32 of 0 and 1; raises ImageError like load_image.

    The marks are resized bilinearly (Pillow, antialiased) and cut at 0.5, as in the released code. An EXIF orientation
    of the mask itself is ignored, as there.

    Args:
        size: S for (S, S), or width and height.
        threshold: values above are anomalous; 0 as in the released code.
        image_path: the image that the mask belongs to. If that is turned by its EXIF orientation and the mask was drawn
            on its unturned pixels, the mask is turned along.
        released: as the released code does: grey values above 0, whatever the transparency or the palette, not turned.
    """
    with opened(path) as image:
        marks = np.asarray(image.convert("L")) > 0 if released else marked(image, threshold)
        binary = Image.fromarray(marks.astype(np.uint8) * 255)
    turn = turn_of_mask(image_path, binary.size) if image_path is not None and not released else None
    if turn is not None:
        binary = binary.transpose(turn)
    resized = np.asarray(binary.resize(size if isinstance(size, tuple) else (size, size), Image.Resampling.BILINEAR))
    return (resized > 127).astype(np.float32)


def marked(image: Image.Image, threshold: float) -> np.ndarray:
    """Which pixels (H, W) of a mask mark an anomaly.

    Grey values above the threshold do, or luminances of colours. Of a palette, whose colours are there for the eye, any
    index but 0 does. Transparent pixels do not; where all pixels have one colour, the opaque ones do.
    """
    if is_deep(image):
        return np.asarray(image) > threshold
    if image.mode == "P":
        alpha = np.asarray(image.convert("RGBA"))[..., 3] if "transparency" in image.info else 255
        return (np.asarray(image) > 0) & (alpha > threshold)
    grey = np.asarray(image.convert("L"))
    if not image.has_transparency_data:
        return grey > threshold
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if grey.min() == grey.max() and alpha.min() != alpha.max():
        return alpha > threshold
    return (grey > threshold) & (alpha > 0)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """The decoded image; whatever goes wrong with it, in here or in the with block, becomes an ImageError."""
    try:
        with header(path) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise ImageError(f"{shown(path)}: has more than {limit} pixels; shrink it or cut it into tiles") from None
    except Exception as error:  # broken files make Pillow raise nearly anything, from SyntaxError to struct.error
        raise ImageError(f"{shown(path)}: {why_not_read(path, error)}") from None


@contextlib.contextmanager
def header(path: str | os.PathLike) -> Iterator[Image.Image]:
    """The image before its pixels are decoded.

    It is opened as a file, for from a path Pillow maps uncompressed TIFF files into memory, and scrambles turned ones.
    """
    if str(path).lower().endswith((".heic", ".heif")):
        knows_heic()
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a file")  # opening a pipe would wait for ever
    with open(path, "rb") as file, Image.open(file) as image:
        yield image


def why_not_read(path: str | os.PathLike, error: Exception) -> str:
    """The end of a message on a file that cannot be read as an image."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); check path and permissions"
    if str(path).lower().endswith((".heic", ".heif")) and not knows_heic():
        return "HEIC needs pillow-heif; pip install -r requirements/heic.txt"
    reason = impostor(path) or " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = impostor(path) or "of no format that Pillow knows"
    return f"cannot be read as an image ({reason[:160]}); replace the file or leave it out"


def knows_heic() -> bool:
    """Whether Pillow can read HEIC, which pillow-heif teaches it."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def is_deep(image: Image.Image) -> bool:
    """Whether the grey values have more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def to_8_bits(image: Image.Image, value_range: tuple[float, float] | None) -> np.ndarray:
    """Deep grey values as uint8; black and white are the ends of the range."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = value_range or own_range(image.mode, float(values.min()), float(values.max()))
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def own_range(mode: str, lowest: float, highest: float) -> tuple[float, float]:
    """The range of values of a deep image, as far as its file tells: that of its type.

    Pillow's mode I holds any integers; of these it is the range of 16 bits, signed or not, if it holds them. Floating
    point numbers have the smallest usual range.
    """
    if mode == "F":
        return usual_range(lowest, highest)
    if mode.startswith("I;16") or (lowest >= 0 and highest <= 65535):
        return 0, 65535
    return (-32768, 32767) if lowest >= -32768 and highest <= 32767 else (-(2.0**31), 2.0**31 - 1)


def usual_range(lowest: float, highest: float) -> tuple[float, float]:
    """The smallest of USUAL_RANGES that holds these values, but for a few per cent of its width; else their own.

    Ranges with negative values are for values of which some are negative.
    """
    for low, high in USUAL_RANGES:
        margin = ABOVE * (high - low)
        if low - margin <= lowest and highest <= high + margin and (low >= 0 or lowest < 0):
            return low, high
    return lowest, max(highest, lowest + 1)


def deep_image_warnings(paths: list[str], advice: str) -> list[str]:
    """What there is to say of how images of more than 8 bits are read without a value_range; a few are looked at."""
    unused, floats = [], []
    for path in dict.fromkeys(paths[:: max(1, len(paths) // PROBED)][:PROBED]):
        try:
            with header(path) as image:
                if not is_deep(image):
                    continue
                values = np.nan_to_num(np.asarray(image).astype(np.float32))
        except Exception:  # what is wrong with a file is said when it is read
            continue
        low, high = own_range(image.mode, float(values.min()), float(values.max()))
        if image.mode == "F":
            floats.append((path, low, high))
        elif values.max() - low < 0.5 * (high - low):
            unused.append((path, float(values.max()), high))
    warnings = []
    if unused:
        path, highest, high = max(unused, key=lambda each: each[1])
        warnings.append(
            f"images of more than 8 bits use little of their range and are read as dark (white is {high:g}, but "
            f"{highest:g} the highest value in {shown(path)}); {advice}"
        )
    if floats:
        ranges = " and ".join(dict.fromkeys(f"{low:g} to {high:g}" for _, low, high in floats))
        warnings.append(
            f"images of floating point numbers are each read over the smallest usual range that holds them ({ranges} "
            f"among the first; {shown(floats[0][0])}); to read all alike, {advice}"
        )
    return warnings


def orientation_and_sizes(path: str | os.PathLike) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """EXIF orientation of an image, and its (width, height) as stored and as shown, from the file's header alone."""
    with header(path) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        stored = image.size
        if image.format == "TIFF":  # Pillow may have swapped the size already
            stored = (image.tag_v2[256], image.tag_v2[257])
    return orientation, stored, stored[::-1] if orientation in (5, 6, 7, 8) else stored


def turn_of_mask(image_path: str | os.PathLike, mask_size: tuple[int, int]) -> Image.Transpose | None:
    """How to turn a mask of this size along with its image; None where it is upright already."""
    try:
        orientation, stored, _ = orientation_and_sizes(image_path)
    except Exception:  # what is wrong with the image is said when it is read
        return None
    return TURNS[orientation] if drawn_unturned(orientation, stored, mask_size) else None


def drawn_unturned(orientation: int, stored: tuple[int, int], mask_size: tuple[int, int]) -> bool:
    """Whether a mask of this size was drawn on the pixels of an image as they are stored, before EXIF turns them."""
    return orientation in (5, 6, 7, 8) and stored[0] != stored[1] and same_shape(mask_size, stored)


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same ratio of width and height."""
    return one[0] * other[1] == one[1] * other[0]
