"""The plain ViT: the parts of open_clip's transformer blocks, one whole block, and the tokens that enter the first."""

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer


def project_qkv(
    block: ResidualAttentionBlock, x: torch.Tensor, class_query: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of `block` for x (B, N, width): three tensors (B, heads, N, width / heads).

    With `class_query` only the class token, the first, gets a query: (B, heads, 1, width / heads).
    """
    heads = block.attn.num_heads
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    x = block.ln_1(x)
    if not class_query:
        qkv = F.linear(x, weight, bias).unflatten(-1, (3, heads, -1))  # (B, N, 3, heads, d)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)
    width = x.shape[-1]
    q = F.linear(x[:, :1], weight[:width], bias[:width]).unflatten(-1, (heads, -1))  # (B, 1, heads, d)
    kv = F.linear(x, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1))  # (B, N, 2, heads, d)
    return q.transpose(1, 2), *kv.permute(2, 0, 3, 1, 4).unbind(0)


def attend(
    block: ResidualAttentionBlock, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v through the block's output projection (and LayerScale): (B, N, width)."""
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (B, heads, N, d)
    return block.ls_1(block.attn.out_proj(heads.transpose(1, 2).flatten(2)))


def feed_forward(block: ResidualAttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """The block's MLP (with its LayerNorm and LayerScale) on x (B, N, width)."""
    hidden = block.mlp.c_fc(block.ln_2(x))  # (B, N, 4 width), the largest tensor of a block
    if isinstance(block.mlp.gelu, QuickGELU) and not hidden.requires_grad:
        # h sigmoid(1.702 h) = silu(1.702 h) / 1.702, computed in place
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


def resize_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Position embeddings (1 + g*g, width) for another grid of patches: (1 + rows*columns, width).

    The patch part is resized bilinearly (align_corners false, no antialias, as in the released code); the class
    position stays as it is.
    """
    own_grid = round((len(positions) - 1) ** 0.5)
    if (own_grid, own_grid) == tuple(grid):
        return positions
    patches = positions[1:].unflatten(0, (own_grid, own_grid)).permute(2, 0, 1)  # (width, g, g)
    patches = F.interpolate(patches.unsqueeze(0), size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], patches[0].flatten(1).T])


def embed(visual: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Tokens that enter the first block, class token first: images (B, 3, H, W) -> (B, 1 + N, width)."""
    patches = visual.conv1(images)  # (B, width, rows, columns)
    positions = resize_positions(visual.positional_embedding, patches.shape[-2:])
    class_token = visual.class_embedding.expand(images.shape[0], 1, -1)
    tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
    return visual.ln_pre(tokens + positions)
