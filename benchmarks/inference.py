"""Scores and maps per second: the plain procedure against model.detect, ViT-L/14@336 at 518 px, float32 on the CPU.

python benchmarks/inference.py            # full size, generated weights; two minutes
python benchmarks/inference.py --small    # a small tower, a few seconds
"""

import argparse

from common import alternate, finish, generated_model, matrix_product_rate, net_peak_memory


def multiplications(width: int, layers: int, patch: int, tokens: int, joint: int, doubled: int) -> dict[str, float]:
    """FLOPs (two per multiply-add) of one image in the matrix products that model.detect needs, last block tapped."""
    blocks, last = layers - 1, 1
    return {
        "patch embedding": 2 * (tokens - 1) * 3 * patch**2 * width,
        "qkv": 6 * tokens * width**2 * (blocks + last),
        "attention": 4 * tokens**2 * width * blocks + 4 * tokens * width * last,
        "attention of DPAM": 4 * tokens**2 * width * doubled,
        "output projections": 2 * tokens * width**2 * (blocks + doubled) + 2 * width**2 * last,
        "mlp": 16 * tokens * width**2 * blocks + 16 * width**2 * last,
        "joint space": 2 * (tokens + 1) * width * joint,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="width 256, 12 blocks, 252 px")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each path; the best counts")
    args = parser.parse_args()

    import torch
    from plain import detect as plain_detect

    model, vision = generated_model(args.small, {"width": 128, "heads": 2, "layers": 2})
    image_size, dpam_layer = model.image_size, model.dpam_layer
    image, text_features = torch.randn(1, 3, image_size, image_size), torch.randn(2, 768)
    layers = [vision["layers"]]
    paths = {
        "plain": lambda: plain_detect(model.clip, image, text_features, layers, dpam_layer, 4),
        "ours": lambda: model.detect(image, text_features, layers, 4),
    }
    with torch.no_grad():
        alternate(paths, rounds=1)  # warm-up
        rate = matrix_product_rate()
        seconds, results = alternate(paths, args.rounds)
        rate = max(rate, matrix_product_rate())
        memory = {name: net_peak_memory(path) for name, path in paths.items()}
    (plain_score, plain_map), (score, maps) = results["plain"], results["ours"]
    errors = {
        "score": (score[0] - plain_score).abs().item(),
        "map": (maps[0] - torch.from_numpy(plain_map)).abs().max().item(),
    }
    counts = multiplications(
        vision["width"], vision["layers"], vision["patch_size"], 1 + model.grid**2, 768, dpam_layer - 1
    )
    for name, value in counts.items():
        print(f"{name:20s} {value / 1e9:8.1f} GFLOP")
    bound = sum(counts.values()) / rate
    ratio, share = seconds["plain"] / seconds["ours"], bound / seconds["ours"]
    print(f"{'sum':20s} {sum(counts.values()) / 1e9:8.1f} GFLOP; {rate / 1e9:.0f} GFLOP/s here: {bound:.2f} s an image")
    print(f"plain {seconds['plain']:.2f} s, ours {seconds['ours']:.2f} s: {ratio:.2f} times faster")
    print(f"share of the matrix-product bound: {share:.2f}")
    print(f"differences: score {errors['score']:.1e}, map {errors['map']:.1e}")
    if memory["plain"]:
        print(f"peak memory beyond weights: plain {memory['plain']:.0f} MB, ours {memory['ours']:.0f} MB")
    finish({"ratio": ratio, "bound_share": share, "errors": errors, "seconds": seconds, "peak_memory_mb": memory,
            "matrix_product_gflops": rate / 1e9, "gflop": sum(counts.values()) / 1e9})  # fmt: skip


if __name__ == "__main__":
    main()
