"""scripts/paper/panels.py (figure 4): sheets pixel by pixel, the choice of images, bad runs."""

import json
from pathlib import Path

import numpy as np
from helpers import check_error, check_help, run, run_main
from PIL import Image

from scripts.paper import panels


def run_panels(monkeypatch, *arguments) -> int:
    return run_main(monkeypatch, "panels.py", panels.main, *arguments)


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
    assert run_panels(monkeypatch, *common, "--examples", 4) == 0
    assert capsys.readouterr().out == f"wrote {sheet}: 2 classes, 8 images\n"
    shown = read_sheet(sheet, triples=4, rows=2)
    for column, colour in enumerate(COLOURS):
        assert (shown[:, :, column, 16:, 16:] == colour).all()
    assert (shown[:, :3, 0, 0, 0] == 0).all() and (shown[:, 3, 0, 0, 0] == 255).all()  # 3 anomalous, then a normal one
    assert list(sheet.parent.iterdir()) == [sheet]

    assert run_panels(monkeypatch, *common, "--images", "tile/test/2 ö.png", "tile/test/3 ö.png") == 0
    shown = read_sheet(sheet, triples=2, rows=1)
    assert shown[0, :, 0, 0, 0].tolist() == [[0] * 3, [255] * 3]


def test_figure_4_without_masks_and_of_several_runs(data, tmp_path, monkeypatch):
    plain, sheet = fake_run(tmp_path / "plain", data, masks=False), tmp_path / "sheet.png"
    common = ("--panel_size", 32, "--examples", 1, "--output", sheet)
    assert run_panels(monkeypatch, plain, *common) == 0
    shown = read_sheet(sheet, triples=1, rows=2, columns=2)
    assert (shown[:, 0, 1, 16:, 16:] == COLOURS[2]).all()
    assert run_panels(monkeypatch, plain, fake_run(tmp_path / "masked", data, "other"), *common) == 0
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

    refused(r"nowhere: has no vis folder; make it with test\.py --vis", tmp_path / "nowhere")
    refused("--images x.png: not among the tested images", finished, "--images", "x.png")
    Image.new("RGB", (50, 24)).save(finished / "vis/tile/test/0 ö.png")
    refused("not a picture of test.py, 50 x 24", finished, "--examples", 9)
    (finished / "vis/tile/test/0 ö.png").unlink()
    refused(r"0 ö\.png: is missing", finished, "--examples", 9)
    (finished / "metrics.json").unlink()
    refused("not a finished run", finished)
    (finished / "metrics.json").write_text("{}")
    (finished / "args.json").write_text("[]")
    refused("not a finished run", finished)
    fake_run(finished, data, "gone")
    record = json.loads((finished / "args.json").read_text())
    (finished / "args.json").write_text(json.dumps(record | {"arguments": {"data_path": str(tmp_path / "gone")}}))
    refused("gone: No such file", finished)


def test_help_is_quick():
    check_help("scripts/paper/panels.py", "--examples", "torch", "numpy", "PIL", "matplotlib")
