"""What a camera makes of a rendered scene: uneven light, exposure, lens, sensor and file.

A scene and its defective twin go through one camera, so that nothing but the defect tells them apart.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from synthetic.world import grid, smooth_noise


@dataclass
class Camera:
    """How one photograph is taken."""

    light: np.ndarray  # (H, W) float32: lamps, shadows, vignetting; about 1
    gain: np.ndarray  # (3,) float32: exposure and white balance
    gamma: float
    blur: float  # standard deviation in pixels
    grey: bool
    noise: float  # standard deviation in [0, 1]
    grain: int  # pixels across one grain of the noise
    quality: int  # of JPEG; 0: not compressed


def random_camera(rng: np.random.Generator, size: int, grey: float) -> Camera:
    """A camera in front of pictures of size x size pixels; it sees in shades of grey with probability `grey`."""
    x, y = grid(size)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    light = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y) - rng.uniform(0, 0.2) * (x**2 + y**2) / 2
    light = light * (1 + rng.uniform(0, 0.35) * (smooth_noise(rng, size, int(rng.integers(2, 5))) - 0.5))
    return Camera(
        light=light.astype(np.float32),
        gain=(rng.uniform(0.65, 1.25) * rng.uniform(0.94, 1.06, 3)).astype(np.float32),
        gamma=rng.uniform(0.75, 1.35),
        blur=size * rng.uniform(0.002, 0.009) * (rng.random() < 0.6),
        grey=rng.random() < grey,
        noise=0.05 * rng.random() ** 2,
        grain=int(rng.integers(1, 3)),
        quality=int(rng.integers(35, 96)) if rng.random() < 0.6 else 0,
    )


def photograph(rng: np.random.Generator, image: np.ndarray, camera: Camera) -> np.ndarray:
    """A scene's image (H, W, 3) in [0, 1] as the camera gives it, likewise; the noise is drawn anew in each picture."""
    size = image.shape[0]
    image = image.astype(np.float32) * camera.light[..., None] * camera.gain
    image = np.clip(image, 0, 1) ** np.float32(camera.gamma)
    if camera.blur:
        image = cv2.GaussianBlur(image, (0, 0), camera.blur)
    if camera.grey:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    cells = -(-size // camera.grain)
    noise = rng.standard_normal((cells, cells, 1 if camera.grey else 3), dtype=np.float32)
    noise = noise.repeat(camera.grain, 0).repeat(camera.grain, 1)[:size, :size]
    image = np.clip(image + np.float32(camera.noise) * noise, 0, 1)
    if camera.quality:
        pixels = (image[..., ::-1] * 255 + 0.5).astype(np.uint8)  # OpenCV's order is BGR
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, camera.quality])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255
    return image
