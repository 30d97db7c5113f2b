"""WinCLIP's scores and maps per second: plain procedures against methods/winclip.py, ViT-B/16+ at 240 px, on the CPU.

Two plain procedures: "plain" sends one window after the other through the tower, "batched" all windows of a scale at
once through the whole of it, as anomalib does; both take the harmonic means in loops.

python benchmarks/winclip.py            # full size, generated weights, zero-shot; two minutes
python benchmarks/winclip.py --small    # a small tower, seconds
"""

import argparse

import open_clip
import torch
import torch.nn.functional as F
from common import alternate, finish, matrix_product_rate
from plain import attention

from AnomalyCLIP_lib import AnomalyCLIP
from methods.winclip import SCALES, SETTINGS, Method


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


def plain_detect(clip, image: torch.Tensor, text_features: torch.Tensor, batched: bool):
    """Score and map (S, S) of one image (1, 3, S, S)."""

    def abnormal(features):
        logits = F.normalize(features, dim=-1) @ F.normalize(text_features, dim=-1).T / 0.07
        return logits.softmax(dim=-1)[:, 1]

    visual = clip.visual
    patches = visual.conv1(image)
    side = patches.shape[-1]
    tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + visual.positional_embedding
    score = abnormal(run_blocks(visual, tokens))
    inverse = 1 / score.expand(side**2)
    for size in SCALES:
        places = range(side - size + 1)
        windows = [
            [(row + down) * side + column + right for down in range(size) for right in range(size)]
            for row in places
            for column in places
        ]
        pieces = [tokens[:, [0, *(1 + patch for patch in window)]] for window in windows]
        pieces = [torch.cat(pieces)] if batched else pieces
        scores = abnormal(torch.cat([run_blocks(visual, piece) for piece in pieces]))
        inverse = inverse + 1 / harmonic_mean(scores.tolist(), windows, side**2)
    maps = ((1 + len(SCALES)) / inverse).view(1, 1, side, side)
    return score[0], F.interpolate(maps, image.shape[-1], mode="bilinear")[0, 0]


def multiplications(width: int, layers: int, patch: int, side: int, joint: int) -> float:
    """FLOPs (two per multiply-add) of one image in the matrix products that the method needs."""
    total = 2 * side**2 * 3 * patch**2 * width
    for count, length in [(1, 1 + side**2)] + [((side - size + 1) ** 2, 1 + size**2) for size in SCALES]:
        block = 24 * length * width**2 + 4 * length**2 * width
        last = block if count == 1 else (4 * length + 20) * width**2 + 4 * length * width
        total += count * ((layers - 1) * block + last + 2 * width * joint)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="width 256, 6 blocks")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each path; the best counts")
    args = parser.parse_args()
    config = open_clip.get_model_config(SETTINGS["model"])
    vision = config["vision_cfg"] | ({"width": 256, "layers": 6} if args.small else {})
    torch.manual_seed(0)
    clip = open_clip.CLIP(config["embed_dim"], vision, {"width": 128, "heads": 2, "layers": 2})
    model = AnomalyCLIP(clip, open_clip.SimpleTokenizer(), vision["image_size"])
    method = Method(model, dict(SETTINGS))
    image = torch.randn(1, 3, model.image_size, model.image_size)
    # near the image's own direction, so that the scores differ and are neither 0 nor 1
    with torch.no_grad():
        text_features = method.encode(image)["image_features"] + torch.randn(2, config["embed_dim"]) / 2
    method.text_features["object"] = text_features
    paths = {
        "plain": lambda: plain_detect(clip, image, text_features, batched=False),
        "batched": lambda: plain_detect(clip, image, text_features, batched=True),
        "ours": lambda: method.predict(method.encode(image), "object"),
    }
    with torch.no_grad():
        alternate(paths, rounds=1)  # warm-up
        rate = matrix_product_rate()
        seconds, results = alternate(paths, args.rounds)
        rate = max(rate, matrix_product_rate())
    scores, maps = results["ours"]
    print(f"scores of the patches from {maps.min():.2f} to {maps.max():.2f}")
    errors = {}
    for name in ("plain", "batched"):
        score, plain_map = results[name]
        errors[name] = max((scores[0] - score).abs().item(), (maps[0] - plain_map).abs().max().item())
        assert errors[name] < 1e-4, f"{name} and ours differ by {errors[name]}"
    flop = multiplications(vision["width"], vision["layers"], vision["patch_size"], model.grid, config["embed_dim"])
    ratios = {name: seconds[name] / seconds["ours"] for name in ("plain", "batched")}
    share = flop / rate / seconds["ours"]
    print(f"{flop / 1e9:.1f} GFLOP an image; {rate / 1e9:.0f} GFLOP/s here: {flop / rate:.2f} s")
    for name, ratio in ratios.items():
        print(f"{name} {seconds[name]:.2f} s, ours {seconds['ours']:.2f} s: {ratio:.2f} times faster")
    print(f"share of the matrix-product bound: {share:.2f}")
    print(f"differences: plain {errors['plain']:.1e}, batched {errors['batched']:.1e}")
    finish({"ratio": ratios["plain"], "ratio_batched": ratios["batched"], "bound_share": share, "errors": errors,
            "seconds": seconds, "matrix_product_gflops": rate / 1e9, "gflop": flop / 1e9})  # fmt: skip


if __name__ == "__main__":
    main()
