"""The plain procedure: the method written out step by step, one image at a time, nothing saved and nothing skipped."""

import torch
import torch.nn.functional as F
from open_clip import CLIP
from scipy.ndimage import gaussian_filter

from AnomalyCLIP_lib.blocks import resize_positions


def attention(block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention with its matrix written out; q, k, v (B, heads, N, d) -> (B, N, width)."""
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))


def encode(clip: CLIP, image: torch.Tensor, layers: list[int], dpam_layer: int):
    """Class feature (1, D) and tapped patch features (1, 1 + N, D) of one image (1, 3, S, S)."""
    visual = clip.visual
    patches = visual.conv1(image)
    tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = visual.ln_pre(tokens + resize_positions(visual.positional_embedding, patches.shape[-2:]))
    blocks, y, taps = visual.transformer.resblocks, None, []
    for number, block in enumerate(blocks, start=1):
        qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v = (
            part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2).contiguous() for part in qkv.chunk(3, dim=-1)
        )
        if number > len(blocks) - (dpam_layer - 1):
            y = x if y is None else y
            y = y + attention(block, v, v, v)
        x = x + attention(block, q, k, v)
        x = x + block.mlp(block.ln_2(x))
        if number in layers:
            taps.append(visual.ln_post(x if y is None else y) @ visual.proj)
    return x[:, 0] @ visual.proj, taps


def detect(
    clip: CLIP, image: torch.Tensor, text_features: torch.Tensor, layers: list[int], dpam_layer: int, sigma: int
):
    """Score and smoothed map (S, S) of one image (1, 3, S, S)."""
    image_features, taps = encode(clip, image, layers, dpam_layer)
    text_features = F.normalize(text_features, dim=-1)
    score = (F.normalize(image_features, dim=-1) @ text_features.T / 0.07).softmax(dim=-1)[0, 1]
    total = 0
    for patch_features in taps:
        probabilities = (F.normalize(patch_features, dim=-1) @ text_features.T / 0.07).softmax(dim=-1)[:, 1:]
        grid = int(probabilities.shape[1] ** 0.5)
        maps = F.interpolate(probabilities.transpose(1, 2).unflatten(2, (grid, grid)), image.shape[-1], mode="bilinear")
        total = total + (maps[0, 1] + 1 - maps[0, 0]) / 2
    return score, gaussian_filter(total.numpy(), sigma)


def encode_text(clip: CLIP, learner) -> torch.Tensor:
    """Text features (2, D) of a PromptLearner's prompts, all 77 positions through all blocks."""
    embeddings, tokens = learner.prompts()
    x = embeddings + clip.positional_embedding
    mask = torch.full((x.shape[1],) * 2, float("-inf")).triu(1)
    for number, block in enumerate(clip.transformer.resblocks):
        if 1 <= number <= len(learner.compound_prompts_text):
            deep = learner.compound_prompts_text[number - 1].half().float()
            x = torch.cat([x[:, :1], deep.expand(2, -1, -1), x[:, 1 + len(deep) :]], dim=1)
        qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v = (part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask).softmax(dim=-1)
        x = x + block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    return clip.ln_final(x)[torch.arange(2), tokens.argmax(dim=-1)] @ clip.text_projection


def loss(text_features, image_features, taps, labels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Equation 2 of AnomalyCLIP: cross-entropy + 4 (focal + Dice + Dice) of a batch, both channels upsampled."""
    text_features = F.normalize(text_features, dim=-1)
    total = F.cross_entropy(F.normalize(image_features, dim=-1) @ text_features.T / 0.07, labels)
    for patch_features in taps:
        probabilities = (F.normalize(patch_features, dim=-1) @ text_features.T / 0.07).softmax(dim=-1)[:, 1:]
        grid = int(probabilities.shape[1] ** 0.5)
        maps = F.interpolate(probabilities.transpose(1, 2).unflatten(2, (grid, grid)), masks.shape[-1], mode="bilinear")
        onehot = torch.stack([1 - masks, masks], dim=1).clamp(1e-5, 1 - 1e-5)
        p = (onehot * maps).sum(dim=1) + 1e-5
        total = total + 4 * (-((1 - p) ** 2) * p.log()).mean()
        for prob, target in ((maps[:, 0], 1 - masks), (maps[:, 1], masks)):
            overlap, size = (prob * target).sum(dim=(1, 2)), (prob.sum(dim=(1, 2)) + target.sum(dim=(1, 2)))
            total = total + 4 * (1 - (2 * overlap + 1) / (size + 1)).mean()
    return total


def run_blocks(visual, x: torch.Tensor) -> torch.Tensor:
    """All blocks on tokens (B, N, width), attention written out; class feature (B, D)."""
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v = (part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        x = x + attention(block, q, k, v)
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x[:, 0]) @ visual.proj


def harmonic_mean(scores: list[float], windows: list[list[int]], patches: int) -> torch.Tensor:
    """For each patch the harmonic mean of the scores of the windows it lies in."""
    means = []
    for patch in range(patches):
        inverse = [1 / score for score, window in zip(scores, windows, strict=True) if patch in window]
        means.append(len(inverse) / sum(inverse))
    return torch.tensor(means)


def detect_by_windows(clip, image: torch.Tensor, text_features: torch.Tensor, batched: bool):
    """WinCLIP's score and map (S, S) of one image (1, 3, S, S); `batched`: all windows of a scale at once."""

    def abnormal(features):
        logits = F.normalize(features, dim=-1) @ F.normalize(text_features, dim=-1).T / 0.07
        return logits.softmax(dim=-1)[:, 1]

    visual = clip.visual
    patches = visual.conv1(image)
    grid = patches.shape[-1]
    tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + visual.positional_embedding
    score = abnormal(run_blocks(visual, tokens))
    inverse = 1 / score.expand(grid**2)
    for size in (2, 3):
        places = range(grid - size + 1)
        windows = [
            [(row + down) * grid + column + right for down in range(size) for right in range(size)]
            for row in places
            for column in places
        ]
        pieces = [tokens[:, [0, *(1 + patch for patch in window)]] for window in windows]
        pieces = [torch.cat(pieces)] if batched else pieces
        scores = abnormal(torch.cat([run_blocks(visual, piece) for piece in pieces]))
        inverse = inverse + 1 / harmonic_mean(scores.tolist(), windows, grid**2)
    maps = (3 / inverse).view(1, 1, grid, grid)
    return score[0], F.interpolate(maps, image.shape[-1], mode="bilinear")[0, 0]
