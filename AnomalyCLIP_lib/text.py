"""The text encoder with learnable tokens in its first blocks (paper section 3.3, equation 3)."""

import torch
from open_clip import CLIP

from .blocks import run_block


def encode_prompts(
    clip: CLIP, embeddings: torch.Tensor, end_positions: torch.Tensor, deep_prompts: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """Text features of prompts given as token embeddings.

    Args:
        clip: open_clip's CLIP; its text tower is causal, so nothing behind the end-of-text token is computed.
        embeddings: (P, length, text width), without position embeddings.
        end_positions: (P,) index of the end-of-text token of each prompt.
        deep_prompts: the i-th (n, text width) overwrites the hidden states at positions 1..n before text block i + 2.

    Returns:
        (P, D): ln_final at the end-of-text token, times text_projection; unnormalised.
    """
    x = embeddings[:, : int(end_positions.max()) + 1]  # (P, longest prompt, width)
    x = x + clip.positional_embedding[: x.shape[1]]
    deep_prompts = deep_prompts or []
    for index, block in enumerate(clip.transformer.resblocks):
        if 1 <= index <= len(deep_prompts):
            tokens = deep_prompts[index - 1].expand(len(x), -1, -1)  # (P, n, width)
            x = torch.cat([x[:, :1], tokens, x[:, 1 + tokens.shape[1] :]], dim=1)
        x = run_block(block, x, causal=True)
    x = clip.ln_final(x[torch.arange(len(x), device=x.device), end_positions])  # (P, width)
    projection = clip.text_projection
    return projection(x) if isinstance(projection, torch.nn.Module) else x @ projection
