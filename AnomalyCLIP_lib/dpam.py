"""The dual-stream vision encoder: CLIP's ViT, and diagonally prominent attention beside it (DPAM, section 3.3)."""

from typing import NamedTuple

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

from .blocks import attend, embed, feed_forward, project_qkv, run_block

DPAM_MODES = ("vv", "qq", "kk")


def run_dual_block(
    block: ResidualAttentionBlock, x: torch.Tensor, y: torch.Tensor, mode: str, class_token_only: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One block of both streams: `x` is the original stream, `y` the DPAM stream, both (B, N, width).

    With `class_token_only` the returned x is (B, 1, width): nothing after the last block reads its patch tokens.
    """
    q, k, v = project_qkv(block, x, class_query=class_token_only and mode != "qq")
    same = {"vv": v, "qq": q, "kk": k}[mode]
    y = y + attend(block, same, same, v)
    if class_token_only:
        x, q = x[:, :1], q[:, :, :1]
    x = x + attend(block, q, k, v)
    return x + feed_forward(block, x), y


class Tokens(NamedTuple):
    """What leaves the blocks of the tower, nothing of it normalised.

    class_token: (B, width) of the original stream, after the last block.
    class_tokens: the same after each of the L tapped blocks.
    tokens: (B, 1 + N, width) after each tapped block, class token first; of the DPAM stream where it runs, before it of
        the original stream.
    """

    class_token: torch.Tensor
    class_tokens: list[torch.Tensor]
    tokens: list[torch.Tensor]


def run_blocks(
    visual: VisionTransformer, images: torch.Tensor, layers: list[int], dpam_layer: int = 1, mode: str = "vv"
) -> Tokens:
    """The tokens of images after each of the blocks `layers`.

    Args:
        visual: open_clip's ViT with T blocks.
        images: (B, 3, H, W), normalised for CLIP; H and W multiples of the patch size.
        layers: 1-based numbers of the L tapped blocks.
        dpam_layer: n: a DPAM stream runs beside the last n - 1 blocks, as far as the last tapped one; 1: no DPAM.
        mode: "vv", "qq" or "kk", the pair whose product stands in the softmax of the DPAM stream.
    """
    blocks = visual.transformer.resblocks
    first_dual = len(blocks) - (dpam_layer - 1) + 1
    x, y = embed(visual, images), None  # (B, 1 + N, width)
    tapped = {}
    for number, block in enumerate(blocks, start=1):
        last = number == len(blocks)
        if first_dual <= number <= max(layers):  # nothing reads the DPAM stream after the last tapped block
            x, y = run_dual_block(block, x, x if y is None else y, mode, class_token_only=last)
        else:
            x = run_block(block, x, class_token_only=last and number not in layers)
        if number in layers:
            tapped[number] = x[:, 0], x if y is None else y
    return Tokens(x[:, 0], *map(list, zip(*(tapped[number] for number in layers), strict=True)))


def encode(
    visual: VisionTransformer, images: torch.Tensor, layers: list[int], dpam_layer: int = 1, mode: str = "vv"
) -> dict[str, torch.Tensor]:
    """Global and local features of images (paper section 3.3), both unnormalised; arguments as in `run_blocks`.

    Returns:
        image_features (B, D): class token of the original stream times `proj`, WITHOUT ln_post; the released
        checkpoints depend on it.
        patch_features (B, L, 1 + N, D): for each of `layers` the tokens, ln_post, then `proj`; class token first.
    """
    run = run_blocks(visual, images, layers, dpam_layer, mode)
    local = [visual.ln_post(tokens) @ visual.proj for tokens in run.tokens]
    return {"image_features": run.class_token @ visual.proj, "patch_features": torch.stack(local, dim=1)}
