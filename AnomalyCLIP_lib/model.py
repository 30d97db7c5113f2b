"""The frozen model: images and texts to features, features to scores and maps."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from open_clip import CLIP, SimpleTokenizer
from open_clip.transformer import QuickGELU
from torch import nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, PILToTensor, Resize, ToTensor

from . import dpam
from .errors import InputError
from .similarity import anomaly_map, class_probabilities, full_size
from .text import encode_prompts

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Features = dict[str, torch.Tensor]


@contextlib.contextmanager
def float32_convolutions() -> Iterator[None]:
    """Convolutions on CUDA in float32, as matrix products are; torch rounds their factors to TF32, 10 bits, by default.

    The patch embedding is one. On an H100 it cost ViT-L/14@336 two digits: features were 9e-4 from those of the CPU.
    """
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        switch, name, exact = cudnn.conv, "fp32_precision", "ieee"
    else:  # before torch 2.9
        switch, name, exact = cudnn, "allow_tf32", False
    before = getattr(switch, name)
    setattr(switch, name, exact)
    try:
        yield
    finally:
        setattr(switch, name, before)


class AnomalyCLIP(nn.Module):
    """CLIP with the dual-stream vision encoder; every parameter is frozen.

    Attributes:
        clip: open_clip's model.
        preprocess: PIL RGB image -> (3, S, S) float tensor.
        resize: the same as uint8, to be normalised on the device by `encode_image`, bit for bit alike.
        image_size: S in pixels. patch_size: pixels. grid: G = S / patch_size.
        num_layers: vision blocks. num_text_layers: text blocks.
        activation: "QuickGELU" or "GELU", which weights do not tell.
        dpam_layer, dpam_mode, precision: see `load`.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer: SimpleTokenizer,
        image_size: int,
        dpam_layer: int | None = None,
        dpam_mode: str = "vv",
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.patch_size = clip.visual.patch_size[0]
        self.num_layers = len(clip.visual.transformer.resblocks)
        self.num_text_layers = len(clip.transformer.resblocks)
        quick = isinstance(clip.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
        self.activation = "QuickGELU" if quick else "GELU"
        self.dpam_layer = default_dpam_layer(self.num_layers) if dpam_layer is None else dpam_layer
        self.dpam_mode = dpam_mode
        if image_size < self.patch_size or image_size % self.patch_size:
            near = max(1, round(image_size / self.patch_size)) * self.patch_size
            raise InputError(
                f"image_size {image_size} is not a multiple of the patch size {self.patch_size}; use {near}"
            )
        if not 1 <= self.dpam_layer <= self.num_layers + 1:
            raise InputError(
                f"dpam_layer {dpam_layer} stands for DPAM in the last {self.dpam_layer - 1} blocks, but the vision "
                f"tower has {self.num_layers}; use 1 (no DPAM) to {self.num_layers + 1}"
            )
        if dpam_mode not in dpam.DPAM_MODES:
            raise InputError(f"dpam_mode {dpam_mode!r} is not one of {', '.join(dpam.DPAM_MODES)}")
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.grid = image_size // self.patch_size
        self.precision = precision
        resize = Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
        self._normalize = Normalize(mean, std)
        self.preprocess = Compose([resize, ToTensor(), self._normalize])
        self.resize = Compose([resize, PILToTensor()])
        if precision != "fp32":
            self.cast_vision_tower(PRECISIONS[precision])

    def cast_vision_tower(self, dtype: torch.dtype) -> None:
        """Give the vision tower's matrices the type that autocast would cast them to in every call."""
        _ = self.weights_sha256  # of the weights as they were loaded
        visual = self.clip.visual
        for name, parameter in visual.named_parameters():
            if parameter.ndim >= 2 and "embedding" not in name:
                parameter.data = parameter.data.to(dtype)

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @cached_property
    def weights_sha256(self) -> str:
        """Checksum of the backbone's weights: the same for the same weights, wherever their file lies."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def check_layers(self, layers: list[int]) -> list[int]:
        """`layers` if they are distinct block numbers of the vision tower (1-based), else InputError."""
        if not layers or len(set(layers)) != len(layers) or not all(1 <= layer <= self.num_layers for layer in layers):
            raise InputError(f"features_list {layers} must be distinct blocks between 1 and {self.num_layers}")
        return layers

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) as `preprocess` gives them, from uint8 ones of `resize`; others pass unchanged."""
        return self._normalize(images.float().div_(255)) if images.dtype == torch.uint8 else images

    def run_frozen(self, encoder: Callable[[torch.Tensor], Features], images: torch.Tensor) -> Features:
        """encoder(images), the one way in which images pass through frozen towers.

        Normalises images that are uint8, runs the matrix products at `precision` (sums, norms and softmax stay
        float32), and returns every feature as float32.
        """
        context = float32_convolutions()
        if self.precision != "fp32":
            context = torch.autocast(self.device.type, PRECISIONS[self.precision])
        with context:
            features = encoder(self.normalize(images))
        return {name: value.float() for name, value in features.items()}

    def encode(self, images: torch.Tensor, layers: list[int]) -> Features:
        """The dual-stream encoder on normalised images (B, 3, S, S), as `run_frozen` calls it.

        image_features (B, D) and patch_features (B, L, 1 + G*G, D) of the L blocks `layers`; see `dpam.encode`.
        """
        return dpam.encode(self.clip.visual, images, self.check_layers(layers), self.dpam_layer, self.dpam_mode)

    def encode_image(
        self, images: torch.Tensor, layers: list[int] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Global and local features of images (B, 3, S, S), preprocessed or uint8, unnormalised.

        Returns (B, D), the class token without ln_post, and for each tapped block of `layers` (1-based; default: the
        last) (B, 1 + G*G, D), the class token first. See `dpam.encode`. Gradients flow to images that require them.
        """
        layers = [self.num_layers] if layers is None else list(layers)
        features = self.run_frozen(lambda normalised: self.encode(normalised, layers), images)
        return features["image_features"], list(features["patch_features"].unbind(1))

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Features (P, D) of hand-written prompts, unnormalised."""
        tokens = self.tokenizer(texts).to(self.device)  # (P, 77)
        return encode_prompts(self.clip, self.clip.token_embedding(tokens), tokens.argmax(dim=-1))

    @torch.no_grad()
    def detect(
        self,
        images: torch.Tensor,
        text_features: torch.Tensor,
        layers: list[int] | None = None,
        sigma: float = 4,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Anomaly scores and maps of preprocessed images (paper section 3.3). Keeps no gradients.

        Args:
            images: (B, 3, S, S), or uint8 ones of `resize`; on any device, they are moved to the model's.
            text_features: (2, D) normal, abnormal; or (B, 2, D); moved likewise.
            layers: 1-based blocks whose maps are summed (default: the last).
            sigma: width of the Gaussian filter in pixels; 0 switches it off.

        Returns:
            scores (B,) in [0, 1]; maps (B, S, S), in [0, number of layers]; float32 on the CPU.
        """
        text_features = text_features.to(self.device)
        image_features, patch_features = self.encode_image(images.to(self.device), layers)
        scores = class_probabilities(image_features, text_features)[:, 1]
        maps = full_size(anomaly_map(patch_features, text_features), self.image_size, sigma)
        return scores.float().cpu(), maps.cpu()


def default_dpam_layer(num_layers: int) -> int:
    """20 for 24 blocks, as released; for other depths the same share of blocks keeps ordinary attention."""
    return num_layers + 1 - round(num_layers * 5 / 24)
