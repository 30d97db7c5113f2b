"""scripts/paper/panels.py (figure 4): sheets pixel by pixel, the choice of images, bad runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import check_error, check_help, make_data, run, run_main
from PIL import Image

from dataset import load_image, load_mask
from deploy.maps import map_to_uint16, write_image
from scripts.paper import panels

SIDE = 24  # pixels of the maps


def run_panels(monkeypatch, *arguments) -> int:
    return run_main(monkeypatch, "panels.py", panels.main, *arguments)


def fake_run(folder: Path, data: Path, name: str = "fake") -> Path:
    """What test.py --save_maps leaves behind: normal images have maps of 0, anomalous ones of 0.8."""
    meta = json.loads((data / "meta.json").read_text())
    for entry in (entry for entries in meta["test"].values() for entry in entries):
        values = np.full((SIDE, SIDE), 0.8 * entry["anomaly"], np.float32)
        write_image((folder / "maps" / entry["img_path"]).with_suffix(".png"), map_to_uint16(values, 1))
    (folder / "args.json").write_text(
        json.dumps(
            {
                "arguments": {"data_path": str(data)},
                "dataset": name,
                "split": "test",
                "settings": {"image_size": SIDE},
            }
        )
    )
    (folder / "metrics.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def unmasked(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("unmasked"), masks=False)


def read_sheet(path: Path, triples: int, rows: int, columns: int = 3, side: int = SIDE) -> np.ndarray:
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


def image_and_mask(data: Path, path: str, mask: str | None) -> list[np.ndarray]:
    """What the first two panels of an image show."""
    image = np.asarray(load_image(data / path).resize((SIDE, SIDE)))
    marked = load_mask(data / mask, SIDE) if mask else np.zeros((SIDE, SIDE))
    return [image, np.repeat(marked[..., None] * 255, 3, axis=2)]


def test_figure_4(data, tmp_path, monkeypatch, capsys):
    finished, sheet = fake_run(tmp_path / "run", data), tmp_path / "new" / "sheet.png"
    common = (finished, "--panel_size", SIDE, "--output", sheet)
    assert run_panels(monkeypatch, *common, "--examples", 4) == 0
    assert capsys.readouterr().out == f"wrote {sheet}: 2 classes, 8 images\n"
    shown = read_sheet(sheet, triples=4, rows=2)
    marked = (shown[:, :, 1] > 0).any(axis=(2, 3, 4))
    assert marked[:, :3].all() and not marked[:, 3].any()  # three anomalous images, then a normal one
    assert list(sheet.parent.iterdir()) == [sheet]

    assert run_panels(monkeypatch, *common, "--images", "tile/test/2 ö.png", "tile/test/3 ö.png") == 0
    (anomalous, normal) = read_sheet(sheet, triples=2, rows=1)[0]
    for shown, expected in (
        (anomalous, image_and_mask(data, "tile/test/3 ö.png", "tile/masks/3.png")),
        (normal, image_and_mask(data, "tile/test/2 ö.png", None)),
    ):
        assert np.array_equal(shown[:2], expected)
    warm, cold = (triple[2].astype(int) - triple[0] // 2 for triple in (anomalous, normal))
    assert warm[..., 0].mean() > warm[..., 2].mean() and cold[..., 2].mean() > cold[..., 0].mean()


def test_figure_4_without_masks_and_of_several_runs(data, unmasked, tmp_path, monkeypatch):
    plain, sheet = fake_run(tmp_path / "plain", unmasked), tmp_path / "sheet.png"
    common = ("--panel_size", SIDE, "--examples", 1, "--output", sheet)
    assert run_panels(monkeypatch, plain, *common) == 0
    assert read_sheet(sheet, triples=1, rows=2, columns=2).shape == (2, 1, 2, SIDE, SIDE, 3)
    assert run_panels(monkeypatch, plain, fake_run(tmp_path / "masked", data, "other"), *common) == 0
    shown = read_sheet(sheet, triples=1, rows=4)
    assert (shown[:2, 0, 1, 0, 0] == 211).all()  # light grey: no mask
    assert (shown[2:, 0, 1] == 255).any(axis=(1, 2, 3)).all()


def test_choice_is_seeded_and_puts_anomalous_images_first(data, tmp_path):
    _, dataset = panels.read_run(fake_run(tmp_path / "run", data))
    entries = dataset.entries
    entries = entries[:6]
    for number in (2, 5, 9):
        chosen = panels.choose(entries, number, "111 tile")
        assert chosen == panels.choose(entries, number, "111 tile")
        assert len(set(chosen)) == min(number, 6)
        assert [entry.label for entry in chosen] == [1, 1, 1, 0, 0, 0][:number]
    assert len({tuple(panels.choose(entries, 2, str(seed))) for seed in range(20)}) > 2


def test_figure_4_of_a_real_run(data, tmp_path, monkeypatch):
    """What test.py --save_maps writes is what panels.py reads."""
    arguments = ("--data_path", data, "--save_path", tmp_path / "run", "--prompt", "hand-written", "--model", "tiny")
    more = ("--metrics", "image-level", "--num_workers", 0, "--device", "cpu", "--save_maps")
    assert run(monkeypatch, "test", *arguments, *more) == 0
    assert run_panels(monkeypatch, tmp_path / "run", "--panel_size", 96, "--output", tmp_path / "sheet.png") == 0
    shown = read_sheet(tmp_path / "sheet.png", triples=3, rows=2, side=96)
    assert set(np.unique(shown[:, :, 1])) == {0, 255} and (shown[:, :, 1] > 0).any(axis=(2, 3, 4)).all()


def test_figure_4_refuses(data, tmp_path, monkeypatch, capsys):
    finished = fake_run(tmp_path / "run", data)
    sheet = ("--output", tmp_path / "sheet.png")

    def refused(message, *arguments):
        assert run_panels(monkeypatch, *arguments, *sheet) == 2
        check_error(capsys, message)
        assert not (tmp_path / "sheet.png").exists()

    refused(r"nowhere: has no maps folder; make it with test\.py --save_maps", tmp_path / "nowhere")
    refused("--images x.png: not among the tested images", finished, "--images", "x.png")
    (finished / "maps/tile/test/0 ö.png").write_bytes(b"no map")
    refused(r"0 ö\.png: is missing or damaged", finished)
    (finished / "maps/tile/test/0 ö.png").unlink()
    refused(r"0 ö\.png: is missing or damaged", finished)
    (finished / "metrics.json").unlink()
    refused("not a finished run", finished)
    (finished / "metrics.json").write_text("{}")
    (finished / "args.json").write_text("[]")
    refused("not a finished run", finished)
    fake_run(finished, data, "gone")
    record = json.loads((finished / "args.json").read_text())
    (finished / "args.json").write_text(json.dumps(record | {"arguments": {"data_path": str(tmp_path / "gone")}}))
    refused("gone: No such file", finished)
    shutil.rmtree(finished / "maps")
    refused("has no maps folder", finished)


def test_help_is_quick():
    check_help("scripts/paper/panels.py", "--examples", "torch", "numpy", "PIL", "matplotlib")
