"""scripts/attention_maps.py and panels.py (figures 3 and 4): attention written out in full, sheets pixel by pixel."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_scripts import check_error, make_data
from test_scripts import run as run_script

from AnomalyCLIP_lib import dpam
from scripts import attention_maps, panels
from utils import InputError, run_cli

ROOT = Path(__file__).parent.parent


def run(monkeypatch, script, *arguments) -> int:
    """Run one of the two scripts in this process as its command line would; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    try:
        run_cli(script.main)
    except SystemExit as exit:
        return exit.code or 0
    return 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data set"))


# Figure 3


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
    x = dpam.embed(small_model.clip.visual, image[None])
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
    assert run(monkeypatch, attention_maps, *common, "--patch", 3, 7, "--block", 4) == 0
    output = capsys.readouterr().out
    assert output.startswith("block 4 of 6, patch (3, 7) of 12 x 12;") and f"wrote {picture}" in output
    shares = dict(re.findall(r"^(\w\w): +([\d.]+)% on itself", output, re.MULTILINE))
    assert list(shares) == list(attention_maps.KINDS) and all(0 < float(share) <= 100 for share in shares.values())
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and drawn.size == (1400, 245)  # five panels of 4:3 and their titles
        assert np.asarray(drawn.convert("RGB")).std() > 20
    assert list(picture.parent.iterdir()) == [picture]
    assert run(monkeypatch, attention_maps, *common, "--mask", data / "tile/masks/1.png") == 0
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
    assert run(monkeypatch, attention_maps, *common, *flags) == 2
    check_error(capsys, message)
    assert not list(tmp_path.iterdir())


# Figure 4

COLOURS = ((200, 0, 0), (255, 255, 255), (0, 0, 200))


def fake_run(folder: Path, data: Path, name: str = "fake", masks: bool = True) -> Path:
    """What test.py --vis leaves behind, with a plain colour for each of image, mask and map; 24 pixels high."""
    meta = json.loads((data / "meta.json").read_text())
    for entry in (entry for entries in meta["test"].values() for entry in entries):
        colours = COLOURS if masks else COLOURS[::2]
        picture = np.concatenate([np.full((24, 24, 3), colour, np.uint8) for colour in colours], axis=1)
        picture[:4, :4] = 0 if entry["anomaly"] else 255
        file = (folder / "vis" / entry["img_path"]).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    (folder / "args.json").write_text(
        json.dumps({"arguments": {"data_path": str(data)}, "dataset": name, "split": "test"})
    )
    (folder / "metrics.json").write_text("{}")
    return folder


def read_sheet(path: Path, triples: int, rows: int, columns: int = 3, side: int = 32) -> np.ndarray:
    """Panels (rows, triples, columns, side, side, 3) of a sheet, of which the right and lower end are fixed."""
    sheet, gap = np.asarray(Image.open(path)), panels.GAP
    pitch = columns * (side + gap) + 2 * gap
    left, top = sheet.shape[1] - triples * pitch, sheet.shape[0] - rows * (side + gap)
    assert 4 * gap < left < 200 and 16 < top < 40
    return np.array(
        [
            [[sheet[y : y + side, x + i * (side + gap) :][:, :side] for i in range(columns)] for x in lefts]
            for lefts in [range(left, sheet.shape[1], pitch)]
            for y in range(top, sheet.shape[0], side + gap)
        ]
    )


def test_figure_4(data, tmp_path, monkeypatch, capsys):
    finished, sheet = fake_run(tmp_path / "run", data), tmp_path / "new" / "sheet.png"
    common = (finished, "--panel_size", 32, "--output", sheet)
    assert run(monkeypatch, panels, *common, "--examples", 4) == 0
    assert capsys.readouterr().out == f"wrote {sheet}: 2 classes, 8 images\n"
    shown = read_sheet(sheet, triples=4, rows=2)
    for column, colour in enumerate(COLOURS):
        assert (shown[:, :, column, 16:, 16:] == colour).all()
    assert (shown[:, :3, 0, 0, 0] == 0).all() and (shown[:, 3, 0, 0, 0] == 255).all()  # 3 anomalous, then a normal one
    assert list(sheet.parent.iterdir()) == [sheet]

    assert run(monkeypatch, panels, *common, "--images", "tile/test/2 ö.png", "tile/test/3 ö.png") == 0
    shown = read_sheet(sheet, triples=2, rows=1)
    assert shown[0, :, 0, 0, 0].tolist() == [[0] * 3, [255] * 3]


def test_figure_4_without_masks_and_of_several_runs(data, tmp_path, monkeypatch):
    plain, sheet = fake_run(tmp_path / "plain", data, masks=False), tmp_path / "sheet.png"
    common = ("--panel_size", 32, "--examples", 1, "--output", sheet)
    assert run(monkeypatch, panels, plain, *common) == 0
    shown = read_sheet(sheet, triples=1, rows=2, columns=2)
    assert (shown[:, 0, 1, 16:, 16:] == COLOURS[2]).all()
    assert run(monkeypatch, panels, plain, fake_run(tmp_path / "masked", data, "other"), *common) == 0
    shown = read_sheet(sheet, triples=1, rows=4)
    assert (shown[:2, 0, 1, 0, 0] == 211).all() and (shown[2:, 0, 1, 16:, 16:] == 255).all()  # light grey: no mask


def test_choice_is_seeded_and_puts_anomalous_images_first(data, tmp_path):
    entries = panels.read_run(fake_run(tmp_path / "run", data))[1][:6]
    for number in (2, 5, 9):
        chosen = panels.choose(entries, number, "111 tile")
        assert chosen == panels.choose(entries, number, "111 tile")
        assert len(set(chosen)) == min(number, 6)
        assert [entry.label for entry in chosen] == [1, 1, 1, 0, 0, 0][:number]
    assert len({tuple(panels.choose(entries, 2, str(seed))) for seed in range(20)}) > 2


def test_figure_4_of_a_real_run(data, tmp_path, monkeypatch):
    """What test.py --vis writes is what panels.py reads."""
    arguments = ("--data_path", data, "--save_path", tmp_path / "run", "--prompt", "hand-written", "--model", "tiny")
    more = ("--metrics", "image-level", "--num_workers", 0, "--device", "cpu", "--vis")
    assert run_script(monkeypatch, "test", *arguments, *more) == 0
    assert run(monkeypatch, panels, tmp_path / "run", "--panel_size", 96, "--output", tmp_path / "sheet.png") == 0
    shown = read_sheet(tmp_path / "sheet.png", triples=3, rows=2, side=96)
    assert set(np.unique(shown[:, :, 1])) == {0, 255} and (shown[:, :, 1] > 0).any(axis=(2, 3, 4)).all()


def test_figure_4_refuses(data, tmp_path, monkeypatch, capsys):
    finished = fake_run(tmp_path / "run", data)
    sheet = ("--output", tmp_path / "sheet.png")

    def refused(message, *arguments):
        assert run(monkeypatch, panels, *arguments, *sheet) == 2
        check_error(capsys, message)
        assert not (tmp_path / "sheet.png").exists()

    refused(r"nowhere: has no vis folder; make it with test\.py --vis", tmp_path / "nowhere")
    refused("--images x.png: not among the tested images", finished, "--images", "x.png")
    Image.new("RGB", (50, 24)).save(finished / "vis/tile/test/0 ö.png")
    refused("no picture of test.py, 50 x 24", finished, "--examples", 9)
    (finished / "vis/tile/test/0 ö.png").unlink()
    refused(r"0 ö\.png: is missing", finished, "--examples", 9)
    (finished / "metrics.json").unlink()
    refused("no finished run", finished)
    (finished / "metrics.json").write_text("{}")
    (finished / "args.json").write_text("[]")
    refused("no finished run", finished)
    fake_run(finished, data, "gone")
    record = json.loads((finished / "args.json").read_text())
    (finished / "args.json").write_text(json.dumps(record | {"arguments": {"data_path": str(tmp_path / "gone")}}))
    refused("gone: No such file", finished)


# The command lines


@pytest.mark.parametrize(("name", "flag"), [("attention_maps", "--block"), ("panels", "--examples")])
def test_help_needs_no_torch_and_no_certain_folder(tmp_path, name, flag):
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'numpy', 'PIL', 'matplotlib']));"
        f"sys.argv = ['{name}.py', '--help'];"
        f"runpy.run_path({str(ROOT / 'scripts' / name)!r} + '.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert flag in done.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["figure3.sh"], "no data/mvtec/bottle/test/broken_large/000.png is missing; .*usage: bash scripts/figure3.sh"),
        (["figure3.sh", "image.png"], "image.png without its patch; usage: bash scripts/figure3.sh"),
        (["figure4.sh"], "usage: bash scripts/figure4.sh"),
        (["figure4.sh", "--examples", "3"], "usage: bash scripts/figure4.sh"),
    ],
)
def test_shell_scripts_say_how_to_use_them(tmp_path, command, message):
    script = ["bash", str(ROOT / "scripts" / command[0]), *command[1:]]
    environment = {"PATH": "/usr/bin:/bin", "DATA_ROOT": "no data"}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and re.search(message, done.stderr)
