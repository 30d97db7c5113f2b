"""scripts/paper/attention_maps.py (figure 3): attention written out in full, the query patch, bad input."""

import re

import numpy as np
import pytest
import torch
from helpers import ROOT, check_error, check_help, run_main
from PIL import Image

from AnomalyCLIP_lib.blocks import embed
from scripts.paper import attention_maps
from utils import InputError


def run(monkeypatch, *arguments) -> int:
    return run_main(monkeypatch, "attention_maps.py", attention_maps.main, *arguments)


def full_attention(block, x: torch.Tensor, first: str, second: str) -> torch.Tensor:
    """softmax(a b^T / sqrt(d_head)) of all tokens (N, N), averaged over the heads; x (1, N, width)."""
    normed, heads = block.ln_1(x)[0], block.attn.num_heads
    weights = dict(zip("QKV", block.attn.in_proj_weight.chunk(3), strict=True))
    biases = dict(zip("QKV", block.attn.in_proj_bias.chunk(3), strict=True))
    total, size = 0, x.shape[-1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        a, b = (normed @ weights[name][part].T + biases[name][part] for name in (first, second))
        total = total + torch.softmax(a @ b.T / size**0.5, dim=1)
    return total / heads


@pytest.mark.parametrize("block", [1, 5, None])
def test_attention_maps_are_rows_of_the_full_matrix(small_model, block):
    grid, blocks = small_model.grid, small_model.clip.visual.transformer.resblocks
    block = block or len(blocks)
    image = torch.randn(3, small_model.image_size, small_model.image_size, generator=torch.manual_seed(0))
    x = embed(small_model.clip.visual, image[None])
    for earlier in blocks[: block - 1]:
        x = earlier(x)  # open_clip's own block: the original stream
    normed = blocks[block - 1].ln_1(x)
    ordinary = blocks[block - 1].attn(normed, normed, normed, need_weights=True)[1][0]
    for patch in ((0, 0), (2, 5), (grid - 1, grid - 1)):
        maps = attention_maps.attention_maps(small_model, image, patch, block)
        row = 1 + patch[0] * grid + patch[1]
        assert list(maps) == ["QK", "VV", "QQ", "KK"]
        for kind, values in maps.items():
            expected = full_attention(blocks[block - 1], x, *kind)[row]
            assert values.shape == (grid, grid) and values.dtype == torch.float32
            torch.testing.assert_close(values.flatten(), expected[1:], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(1 - values.sum(), expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(maps["QK"].flatten(), ordinary[row, 1:], atol=1e-6, rtol=1e-4)


def test_attention_maps_refuse_what_is_not_there(small_model):
    image = torch.zeros(3, small_model.image_size, small_model.image_size)
    for patch in ((-1, 0), (0, small_model.grid)):
        with pytest.raises(InputError, match=f"outside of the grid; .* go from 0 to {small_model.grid - 1}"):
            attention_maps.attention_maps(small_model, image, patch, 1)
    for block in (0, small_model.num_layers + 1):
        with pytest.raises(InputError, match=f"the vision tower has 1 to {small_model.num_layers}"):
            attention_maps.attention_maps(small_model, image, (0, 0), block)


def test_figure_3(data, tmp_path, monkeypatch, capsys):
    picture, image = tmp_path / "new" / "figure.png", data / "tile/test/1 ö.png"
    common = ("--image", image, "--model", "tiny", "--device", "cpu", "--output", picture)
    assert run(monkeypatch, *common, "--patch", 3, 7, "--block", 4) == 0
    output = capsys.readouterr().out
    assert output.startswith("block 4 of 6, patch (3, 7) of 12 x 12;") and f"wrote {picture}" in output
    shares = dict(re.findall(r"^(\w\w): +([\d.]+)% on itself", output, re.MULTILINE))
    assert list(shares) == list(attention_maps.KINDS) and all(0 < float(share) <= 100 for share in shares.values())
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and drawn.size == (1400, 245)  # five panels of 4:3 and their titles
        assert np.asarray(drawn.convert("RGB")).std() > 20
    assert list(picture.parent.iterdir()) == [picture]
    assert run(monkeypatch, *common, "--mask", data / "tile/masks/1.png") == 0
    assert "block 6 of 6, patch (" in capsys.readouterr().out


def test_patch_of_mask(tmp_path):
    mask = np.zeros((60, 60), np.uint8)
    mask[11:19, 41:50] = 255  # 8 rows of patch row 1, all columns of patch column 4
    mask[30:33, 0:3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert attention_maps.patch_of_mask(tmp_path / "mask.png", 60, 6) == (1, 4)
    Image.fromarray(np.full((60, 60), 255, np.uint8)).save(tmp_path / "full.png")
    assert attention_maps.patch_of_mask(tmp_path / "full.png", 50, 5) == (2, 2)
    Image.new("L", (60, 60)).save(tmp_path / "empty.png")
    with pytest.raises(InputError, match="marks no pixel"):
        attention_maps.patch_of_mask(tmp_path / "empty.png", 60, 6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image", "nowhere.png", "--patch", 0, 0], r"nowhere\.png: .*No such file"),
        (["--image", ROOT / "README.md", "--patch", 0, 0], r"README\.md: cannot be read"),
        (["--patch", -1, 0], "patch -1 0 is outside"),
        (["--patch", 0, 12], "from 0 to 11"),
        (["--patch", 0, 0, "--block", 7], "has 1 to 6"),
        (["--patch", 0, 0, "--image_size", 100], "use 96"),
        (["--patch", 0, 0, "--pretrained", "openai"], "its own weights"),
        (["--mask", "nowhere.png"], r"nowhere\.png"),
        (["--patch", 0, 0, "--output", "figure.jpg"], r"end in \.png"),
        (["--patch", 0, 0, "--output", "/proc/nowhere/figure.png"], "/proc/nowhere"),
    ],
)
def test_figure_3_refuses(data, tmp_path, monkeypatch, capsys, flags, message):
    common = ("--image", data / "tile/test/1 ö.png", "--model", "tiny", "--output", tmp_path / "figure.png")
    assert run(monkeypatch, *common, *flags) == 2
    check_error(capsys, message)
    assert not list(tmp_path.iterdir())


def test_help_is_quick():
    check_help("scripts/paper/attention_maps.py", "--block", "torch", "numpy", "PIL", "matplotlib")
