"""WinCLIP's scores and maps per second: plain procedures against methods/winclip.py, ViT-B/16+ at 240 px, on the CPU.

Two plain procedures: "plain" sends one window after the other through the tower, "batched" all windows of a scale at
once through the whole of it, as anomalib does; both take the harmonic means in loops.

python benchmarks/winclip.py            # full size, generated weights, zero-shot; two minutes
python benchmarks/winclip.py --small    # a small tower, seconds
"""

import argparse

from common import alternate, finish, matrix_product_rate, windows_model

import methods

SETTINGS = methods.flags("winclip")["SETTINGS"]
SCALES = (2, 3)


def multiplications(width: int, layers: int, patch: int, grid: int, joint: int) -> float:
    """FLOPs (two per multiply-add) of one image in the matrix products that the method needs."""
    total = 2 * grid**2 * 3 * patch**2 * width
    for count, length in [(1, 1 + grid**2)] + [((grid - size + 1) ** 2, 1 + size**2) for size in SCALES]:
        block = 24 * length * width**2 + 4 * length**2 * width
        last = block if count == 1 else (4 * length + 20) * width**2 + 4 * length * width
        total += count * ((layers - 1) * block + last + 2 * width * joint)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="width 256, 6 blocks")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each path; the best counts")
    args = parser.parse_args()

    import torch
    from plain import detect_by_windows

    import features
    from methods.winclip import Method

    model, vision = windows_model(args.small, {"width": 128, "heads": 2, "layers": 2})
    clip, joint = model.clip, model.clip.visual.proj.shape[1]
    method = Method(model, Method.complete(SETTINGS, model))
    image = torch.randn(1, 3, model.image_size, model.image_size)
    # near the image's own direction, so that the scores differ and are neither 0 nor 1
    with torch.no_grad():
        text_features = method.encode(image)["image_features"] + torch.randn(2, joint) / 2
    method.text_features["object"] = text_features
    paths = {
        "plain": lambda: detect_by_windows(clip, image, text_features, batched=False),
        "batched": lambda: detect_by_windows(clip, image, text_features, batched=True),
        "ours": lambda: features.predict(method, method.encode(image), "object"),
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
    flop = multiplications(vision["width"], vision["layers"], vision["patch_size"], model.grid, joint)
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
