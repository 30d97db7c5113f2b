"""The frozen model: images and texts to features, features to scores and maps."""

import contextlib

import torch
from open_clip import CLIP
from torch import nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, PILToTensor, Resize, ToTensor

from utils import InputError

from .dpam import DPAM_MODES, encode
from .similarity import anomaly_map, class_probabilities, smooth
from .text import encode_prompts

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class AnomalyCLIP(nn.Module):
    """CLIP with the dual-stream vision encoder; every parameter is frozen.

    Attributes:
        clip: open_clip's model. preprocess: PIL RGB image -> (3, S, S) float tensor. resize: the same as uint8, to be
            normalised on the device by `encode_image`, bit for bit alike.
        image_size: S in pixels. patch_size: pixels. grid: S / patch_size.
        num_layers: vision blocks. num_text_layers: text blocks. dpam_layer, dpam_mode, precision: see `load`.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer,
        image_size: int,
        dpam_layer: int | None = None,
        dpam_mode: str = "vv",
        mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711),
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.patch_size = clip.visual.patch_size[0]
        self.num_layers = len(clip.visual.transformer.resblocks)
        self.num_text_layers = len(clip.transformer.resblocks)
        self.dpam_layer = default_dpam_layer(self.num_layers) if dpam_layer is None else dpam_layer
        self.dpam_mode = dpam_mode
        if image_size < self.patch_size or image_size % self.patch_size:
            near = max(1, round(image_size / self.patch_size)) * self.patch_size
            raise InputError(
                f"image_size {image_size} is not a multiple of the patch size {self.patch_size}; use {near}"
            )
        if not 1 <= self.dpam_layer <= self.num_layers + 1:
            raise InputError(
                f"dpam_layer {dpam_layer} doubles the last {self.dpam_layer - 1} blocks, but the vision tower has "
                f"{self.num_layers}; use 1 (no DPAM) to {self.num_layers + 1}"
            )
        if dpam_mode not in DPAM_MODES:
            raise InputError(f"dpam_mode {dpam_mode!r} is not one of {', '.join(DPAM_MODES)}")
        self.grid = image_size // self.patch_size
        resize = Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
        self._normalize = Normalize(mean, std)
        self.preprocess = Compose([resize, ToTensor(), self._normalize])
        self.resize = Compose([resize, PILToTensor()])
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.precision = precision

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    def check_layers(self, layers: list[int]) -> list[int]:
        """`layers` if they are distinct block numbers of the vision tower (1-based), else InputError."""
        if not layers or len(set(layers)) != len(layers) or not all(1 <= layer <= self.num_layers for layer in layers):
            raise InputError(f"features_list {layers} must be distinct blocks between 1 and {self.num_layers}")
        return layers

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) as `preprocess` gives them, from uint8 ones of `resize`; others pass unchanged."""
        return self._normalize(images.float().div_(255)) if images.dtype == torch.uint8 else images

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context in which matrix products run at `precision`; sums, norms and softmax stay float32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision])

    def encode_image(
        self, images: torch.Tensor, layers: list[int] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Global and local features of images (B, 3, S, S), preprocessed or uint8, unnormalised.

        Returns (B, D), the class token without ln_post, and for each tapped block of `layers` (1-based; default: the
        last) (B, 1 + G*G, D), the class token first. See `dpam.encode`.
        """
        layers = self.check_layers([self.num_layers] if layers is None else list(layers))
        with self.autocast():
            image_features, patch_features = encode(
                self.clip.visual, self.normalize(images), layers, self.dpam_layer, self.dpam_mode
            )
        return image_features.float(), [features.float() for features in patch_features]

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Features (P, D) of hand-written prompts, unnormalised."""
        tokens = self.tokenizer(texts).to(self.device)
        return encode_prompts(self.clip, self.clip.token_embedding(tokens), tokens.argmax(dim=-1))

    def detect(
        self,
        images: torch.Tensor,
        text_features: torch.Tensor,
        layers: list[int] | None = None,
        sigma: float = 4,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Anomaly scores and maps of preprocessed images (paper section 3.4).

        Args:
            images: (B, 3, S, S), or uint8 ones of `resize`.
            text_features: (2, D) normal, abnormal; or (B, 2, D).
            layers: 1-based blocks whose maps are summed (default: the last).
            sigma: width of the Gaussian filter in pixels; 0 switches it off.

        Returns:
            scores (B,) in [0, 1]; maps (B, S, S), in [0, number of layers]; float32 on the CPU.
        """
        with torch.no_grad():
            image_features, patch_features = self.encode_image(images, layers)
            scores = class_probabilities(image_features, text_features)[:, 1]
            return scores.float().cpu(), smooth(anomaly_map(patch_features, text_features, self.image_size), sigma)


def default_dpam_layer(num_layers: int) -> int:
    """20 for 24 blocks, as released; for other depths the same share of blocks keeps ordinary attention."""
    return num_layers + 1 - round(num_layers * 5 / 24)
