"""Dual-stream vision encoder: open_clip's ViT blocks plus diagonally prominent attention (DPAM, paper section 3.3)."""

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer

DPAM_MODES = ("vv", "qq", "kk")


def project_qkv(
    block: ResidualAttentionBlock, x: torch.Tensor, class_query: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of `block` for x (B, N, width): three tensors (B, heads, N, width / heads).

    With `class_query` only the class token, the first, gets a query: (B, heads, 1, width / heads).
    """
    attn, x = block.attn, block.ln_1(x)
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if not class_query:
        return F.linear(x, weight, bias).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    width = x.shape[-1]
    q = F.linear(x[:, :1], weight[:width], bias[:width]).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    kv = F.linear(x, weight[width:], bias[width:])
    return q, *kv.unflatten(-1, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attend(
    block: ResidualAttentionBlock, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d_head)) v through the block's output projection (and LayerScale): (B, N, width)."""
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return block.ls_1(block.attn.out_proj(heads.transpose(1, 2).flatten(2)))


def feed_forward(block: ResidualAttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """The block's MLP (with its LayerNorm and LayerScale) on x (B, N, width)."""
    hidden = block.mlp.c_fc(block.ln_2(x))
    if isinstance(block.mlp.gelu, QuickGELU) and not hidden.requires_grad:
        # h * sigmoid(1.702 h) = silu(1.702 h) / 1.702, in place: the hidden layer is the largest tensor there is
        hidden = F.silu(hidden.mul_(1.702), inplace=True).div_(1.702)
    else:
        hidden = block.mlp.gelu(hidden)
    return block.ls_2(block.mlp.c_proj(hidden))


def run_block(
    block: ResidualAttentionBlock, x: torch.Tensor, causal: bool = False, class_token_only: bool = False
) -> torch.Tensor:
    """One ordinary transformer block on x (B, N, width); (B, 1, width) with `class_token_only`."""
    q, k, v = project_qkv(block, x, class_token_only)
    x = (x[:, :1] if class_token_only else x) + attend(block, q, k, v, causal)
    return x + feed_forward(block, x)


def run_dual_block(
    block: ResidualAttentionBlock, x: torch.Tensor, y: torch.Tensor, mode: str, class_token_only: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One block of both streams; `x` is the original stream, `y` the DPAM stream, both (B, N, width).

    With `class_token_only` the returned x is (B, 1, width): nothing after the last block reads its patch tokens.
    """
    q, k, v = project_qkv(block, x, class_token_only and mode != "qq")
    same = {"vv": v, "qq": q, "kk": k}[mode]
    y = y + attend(block, same, same, v)
    if class_token_only:
        x, q = x[:, :1], q[:, :, :1]
    x = x + attend(block, q, k, v)
    return x + feed_forward(block, x), y


def resize_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Position embeddings (1 + g*g, width) for another grid of patches: (1 + rows*columns, width).

    The patch part is resized bilinearly (align_corners false, no antialias, as in the released code); the class
    position stays as it is.
    """
    side = round((len(positions) - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return positions
    patches = positions[1:].unflatten(0, (side, side)).permute(2, 0, 1).unsqueeze(0)
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], patches[0].flatten(1).T])


def embed(visual: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Tokens that enter the first block, class token first: images (B, 3, H, W) -> (B, 1 + N, width)."""
    patches = visual.conv1(images)
    positions = resize_positions(visual.positional_embedding, patches.shape[-2:])
    tokens = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    return visual.ln_pre(tokens + positions)


def encode(
    visual: VisionTransformer, images: torch.Tensor, layers: list[int], dpam_layer: int = 1, mode: str = "vv"
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Global and local features of images (paper section 3.3; both unnormalised).

    Args:
        visual: open_clip's ViT with L blocks.
        images: (B, 3, H, W), normalised for CLIP; H and W multiples of the patch size.
        layers: 1-based numbers of the blocks whose output is tapped for local features.
        dpam_layer: n: the attention of the last n - 1 blocks is doubled by the DPAM stream; 1: no DPAM.
        mode: "vv", "qq" or "kk", the pair whose product stands in the softmax of the DPAM stream.

    Returns:
        (B, D) class token of the original stream times `proj`, WITHOUT ln_post: the released checkpoints depend on it;
        for each of `layers` (B, 1 + N, D): tokens of the DPAM stream (of the original stream before the first doubled
        block), ln_post, then `proj`; the class token stands first.
    """
    blocks = visual.transformer.resblocks
    first_doubled = len(blocks) - (dpam_layer - 1) + 1
    x, y, taps = embed(visual, images), None, {}
    for number, block in enumerate(blocks, start=1):
        last = number == len(blocks)
        if first_doubled <= number <= max(layers):
            x, y = run_dual_block(block, x, x if y is None else y, mode, class_token_only=last)
        else:
            x = run_block(block, x, class_token_only=last and number not in layers)
        if number in layers:
            taps[number] = x if y is None else y
    return x[:, 0] @ visual.proj, [visual.ln_post(taps[number]) @ visual.proj for number in layers]
