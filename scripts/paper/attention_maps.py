"""Figure 3 of the paper: where one patch looks under ordinary (Q-K) and diagonally prominent (V-V, Q-Q, K-K) attention.

For the input of one block of the original stream, the row of the chosen patch in softmax(a b^T / sqrt(d_head)),
averaged over the heads, is drawn over the image; each map has its own colour scale. The share of the attention that
lies on the patch itself, the diagonal that DPAM strengthens, stands in the titles and is printed.

    python scripts/paper/attention_maps.py --image IMAGE --patch 12 20    # row and column, counted from 0
    python scripts/paper/attention_maps.py --image IMAGE --mask MASK --block 12 --model tiny
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import InputError, atomic_path, nonempty_path, pick_device, run_cli

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from AnomalyCLIP_lib import AnomalyCLIP

KINDS = ("QK", "VV", "QQ", "KK")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=nonempty_path, required=True)
    patch = parser.add_mutually_exclusive_group(required=True)
    patch.add_argument("--patch", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="the query patch, counted from 0")
    patch.add_argument(
        "--mask", type=nonempty_path, help="mask of the image; the query patch is the one with most of the anomaly"
    )
    parser.add_argument("--block", type=int, help="1-based vision block whose attention is shown (the last)")
    parser.add_argument("--model", help="open_clip model, or tiny for the embedded one (ViT-L-14-336)")
    parser.add_argument("--pretrained", help="open_clip tag or weights file (openai)")
    parser.add_argument("--image_size", type=int, help="pixels; a multiple of the patch size (518 for patch 14)")
    parser.add_argument(
        "--output", type=nonempty_path, default=Path("results/figure3.png"), help="PNG (results/figure3.png)"
    )
    parser.add_argument("--device", help="cuda, mps or cpu (the best there is)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.output.suffix.lower() != ".png":
        raise InputError(f"--output {args.output} must end in .png")
    from deploy.reader import load_image

    image = load_image(args.image)
    model = load_model(args)
    patch = tuple(args.patch) if args.patch else patch_of_mask(args.mask, model.image_size, model.grid)
    block = model.num_layers if args.block is None else args.block
    maps = attention_maps(model, model.preprocess(image), patch, block)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(args.output, image, patch, block, {kind: values.numpy() for kind, values in maps.items()})
    print(f"block {block} of {model.num_layers}, patch {patch} of {model.grid} x {model.grid}; attention of the patch")
    for kind, values in maps.items():
        print(f"{kind}: {values[patch]:7.2%} on itself, {max(0, 1 - values.sum()):7.2%} on the class token")
    print(f"uniform: {1 / (model.grid**2 + 1):.2%} on each token\nwrote {args.output}")


def load_model(args: argparse.Namespace) -> AnomalyCLIP:
    """The backbone; a weights file without --model says itself what it is."""
    import AnomalyCLIP_lib
    from AnomalyCLIP_lib.backbones import HUB, is_file_name

    name, pretrained = args.model, args.pretrained
    if name is None and not (pretrained and is_file_name(pretrained)):
        name = "ViT-L-14-336"
    if pretrained is None and name != "tiny" and not (name or "").startswith(HUB):
        pretrained = "openai"
    return AnomalyCLIP_lib.load(name, pretrained, image_size=args.image_size, device=pick_device(args.device))


def attention_maps(
    model: AnomalyCLIP, image: torch.Tensor, patch: tuple[int, int], block: int
) -> dict[str, torch.Tensor]:
    """Attention of one patch to all patches in one block (paper section 3.3 and figure 3).

    Args:
        model: backbone with a grid of G x G patches.
        image: (3, S, S), preprocessed.
        patch: row and column of the query patch, 0-based.
        block: 1-based; all four maps come from the input of this block in the original stream.

    Returns:
        For each of QK, VV, QQ, KK (G, G): the patch's row of softmax(a b^T / sqrt(d_head)) averaged over the heads,
        without the class token; so the sum is one minus what the class token gets. float32 on the CPU.
    """
    import torch

    from AnomalyCLIP_lib.blocks import embed, project_qkv, run_block

    blocks = model.clip.visual.transformer.resblocks
    if not 1 <= block <= len(blocks):
        raise InputError(f"block {block} does not exist; the vision tower has 1 to {len(blocks)}")
    row, column = patch
    if not (0 <= row < model.grid and 0 <= column < model.grid):
        raise InputError(f"patch {row} {column} is outside of the grid; row and column go from 0 to {model.grid - 1}")
    with torch.no_grad():
        x = embed(model.clip.visual, image.unsqueeze(0).to(model.device))
        for earlier in blocks[: block - 1]:
            x = run_block(earlier, x)
        q, k, v = (heads[0] for heads in project_qkv(blocks[block - 1], x))  # each (heads, 1 + G*G, d_head)
        maps = {}
        for kind, (a, b) in zip(KINDS, ((q, k), (v, v), (q, q), (k, k)), strict=True):
            query = a[:, 1 + row * model.grid + column]
            products = torch.einsum("hd,hnd->hn", query, b) / query.shape[-1] ** 0.5
            attention = products.softmax(dim=-1).mean(dim=0)
            maps[kind] = attention[1:].unflatten(0, (model.grid, model.grid)).float().cpu()
    return maps


def patch_of_mask(path: Path, image_size: int, grid: int) -> tuple[int, int]:
    """Row and column of the patch that holds most of the mask; of several, the one nearest to the mask's centre."""
    import numpy as np

    from deploy.reader import load_mask

    mask = load_mask(path, image_size)
    if not mask.any():
        raise InputError(f"{path} marks no pixel at {image_size} x {image_size}; give --patch ROW COLUMN")
    patch_size = image_size // grid
    shares = mask.reshape(grid, patch_size, grid, patch_size).sum(axis=(1, 3))
    fullest = np.argwhere(shares == shares.max())
    centre = np.argwhere(mask > 0).mean(axis=0) / patch_size - 0.5
    row, column = fullest[np.square(fullest - centre).sum(axis=1).argmin()]
    return int(row), int(column)


def draw(output: Path, image: Image.Image, patch: tuple[int, int], block: int, maps: dict[str, np.ndarray]) -> None:
    """Write the image and the four maps over it, the patch marked in all, in one row; coordinates are patches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    grid = len(maps["QK"])
    shown = image.copy()
    shown.thumbnail((800, 800))
    height = min(max(2.8 * image.height / image.width, 1.4), 5.6)
    figure, panels = plt.subplots(1, 5, figsize=(14, height + 0.35), layout="constrained")
    titles = [f"patch ({patch[0]}, {patch[1]}), block {block}"]
    titles += [f"{kind[0]}-{kind[1]}: {values[patch]:.1%} on itself" for kind, values in maps.items()]
    for panel, title, values in zip(panels, titles, [None, *maps.values()], strict=True):
        place = {"extent": (0, grid, grid, 0), "aspect": image.height / image.width}
        panel.imshow(shown, **place)
        if values is not None:
            panel.imshow(values, cmap="jet", alpha=0.6, interpolation="bilinear", vmin=0, **place)
        panel.add_patch(Rectangle((patch[1], patch[0]), 1, 1, fill=False, edgecolor="white", linewidth=1.5))
        panel.set_title(title)
        panel.axis("off")
    with atomic_path(output) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    run_cli(main)
