"""predict.py: Predictor against test.py, whole runs of the command line, interruptions, and everything it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, check_error, check_help, load_script, run, run_main, start
from PIL import Image

from dataset import ImageError
from deploy.maps import map_from_uint16, resize_map
from predict import Predictor
from utils import InputError

SCRIPT = load_script("predict.py")
PLAIN = ("--model", "tiny", "--device", "cpu", "--features_list", 6)


def run_predict(monkeypatch, *arguments) -> int:
    def main():
        sys.exit(SCRIPT.predict(SCRIPT.parse_args()))

    return run_main(monkeypatch, "predict.py", main, *arguments)


def rows(folder: Path) -> list[dict]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (60, 44)) -> Path:
    """Pictures of a smooth ground, every third with a bright spot."""
    stream = np.random.RandomState(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), stream.randint(60, 120, 3), np.uint8)
        pixels += stream.randint(0, 12, pixels.shape, np.uint8)
        if number % 3 == 0:
            top, left = stream.randint(0, size[1] - 14), stream.randint(0, size[0] - 14)
            pixels[top : top + 14, left : left + 14] = 255 - pixels[top : top + 14, left : left + 14]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), 12)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(model="tiny", prompt="hand-written", features_list=[6])


# one picture


def test_paths_images_and_arrays_give_the_same(predictor, pictures):
    path = pictures / "003.png"
    image = Image.open(path)
    results = predictor([path, str(path), image, np.asarray(image)])
    alone = predictor(path)
    assert 0 < alone.score < 1 and alone.map.shape == (44, 60) and alone.map.dtype == np.float32
    assert alone.map_max == alone.map.max() and alone.tile_max is None
    for result in results:
        assert result.score == alone.score and np.array_equal(result.map, alone.map)


def test_it_says_what_test_py_says(data, trained, tmp_path, monkeypatch):
    """Scores and maps of the same images, at the model's size, to 1e-6."""
    common = ("--data_path", data, "--num_workers", 0, "--device", "cpu", "--save_maps", "--map_dtype", "float32")
    checkpoint = trained / "epoch_2.pth"
    seen = []
    monkeypatch.setattr("metrics.image_auroc", lambda labels, scores: seen.extend(scores) or 0.5)
    assert run(monkeypatch, "test", *common, "--checkpoint_path", checkpoint, "--save_path", tmp_path) == 0
    predictor = Predictor(checkpoint, device="cpu")
    entries = [entry for rows in json.loads((data / "meta.json").read_text())["test"].values() for entry in rows]
    results = predictor([data / entry["img_path"] for entry in entries])
    np.testing.assert_allclose([result.score for result in results], seen, atol=1e-6)
    for entry, result in zip(entries, results, strict=True):
        with Image.open((tmp_path / "maps" / entry["img_path"]).with_suffix(".png")) as image:
            tested = map_from_uint16(np.asarray(image), predictor.highest)
        np.testing.assert_allclose(resize_map(tested, 80, 60), result.map, atol=1.1e-5)


def test_methods_and_their_settings_by_name(pictures, checkpoints):
    for name, checkpoint in checkpoints.items():
        result = Predictor(checkpoint, device="cpu", class_name="bottle")(pictures / "000.png")
        assert 0 <= result.score <= 1 and np.isfinite(result.map).all(), name
    for name in ("clip", "clip_ac", "winclip"):
        predictor = Predictor(method=name, model="tiny", sigma=2.0)
        assert predictor.sigma == 2 and 0 <= predictor(pictures / "000.png").score <= 1


def test_windows_see_small_things(predictor):
    """A spot of 0.1 % of the picture; the map of the whole is looked at, too."""
    pixels = np.full((400, 500, 3), 110, np.uint8) + np.random.RandomState(0).randint(0, 8, (400, 500, 3), np.uint8)
    pixels[290:304, 390:404] = (250, 240, 20)
    closely = Predictor(model="tiny", prompt="hand-written", features_list=[6], tile=96, overlap=0.5)
    result, whole = closely(pixels), predictor(pixels)
    assert result.map.shape == (400, 500)
    assert result.score == pytest.approx((whole.score + result.tile_max) / 2)
    row, column = np.unravel_index(result.map.argmax(), result.map.shape)
    assert abs(row - 297) < 40 and abs(column - 397) < 40
    small = closely(pixels[:50, :70])  # smaller than a window: the window is the picture
    assert small.tile_max == pytest.approx(predictor(pixels[:50, :70]).score)


def test_value_range_says_what_is_black_and_white(tmp_path):
    values = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (48, 1))
    Image.fromarray(values).save(tmp_path / "twelve.png")
    pixels, _ = Predictor(model="tiny", value_range=(0, 4095)).read(tmp_path / "twelve.png")
    assert pixels.min() == 0 and pixels.max() == 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 3}, "no option 'colour'"),
        ({"overlap": 1}, r"overlap 1 is not in \[0, 0.9\]"),
        ({"value_range": (3, 3)}, "the first value has to be the smaller one"),
        ({"method": "winclip", "k_shot": 2}, "--k_shot takes normal pictures from a data set's train split"),
        ({"method": "vand"}, "--method vand needs --checkpoint_path"),
        ({"method": "clip", "dpam_layer": 3}, "--dpam_layer is not a flag of --method clip"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Predictor(model="tiny", **options)


def test_arrays_and_files_that_are_refused(predictor, tmp_path):
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((5, 5, 4), np.uint8)):
        with pytest.raises(InputError, match=r"has to be \(H, W, 3\) uint8"):
            predictor(wrong)
    with pytest.raises(ImageError, match="nowhere.png"):
        predictor(tmp_path / "nowhere.png")


# a run


def test_a_plain_run(pictures, tmp_path, monkeypatch, predictor):
    """Scores, overlays and a report, and no decisions: there is nothing to decide by."""
    folder = tmp_path / "results"
    assert run_predict(monkeypatch, pictures, "--save_path", folder, *PLAIN) == 0
    made = {path.name for path in folder.iterdir()}
    assert made == {"predictions.csv", "regions.json", "report.html", "args.json", "log.txt", "overlays"}
    table = rows(folder)
    assert (
        list(table[0])
        == ("path score p_value threshold decision map_max tile_max anomalous_share regions width height error").split()
    )
    assert [row["path"] for row in table] == [f"{number:03d}.png" for number in range(12)]
    results = predictor(sorted(pictures.iterdir()))
    for row, result in zip(table, results, strict=True):
        assert row["score"] == f"{result.score:.6g}" and row["map_max"] == f"{result.map_max:.6g}"
        assert (row["width"], row["height"]) == ("60", "44")
        assert {row[name] for name in ("p_value", "threshold", "decision", "tile_max", "regions", "error")} == {""}
        with Image.open(folder / "overlays" / row["path"]) as overlay:
            assert overlay.size == (60, 44)
    record = json.loads((folder / "args.json").read_text())
    assert record["threads"] == 1 and record["made_with"]["prompt"] == "hand-written"


def test_normal_pictures_decide(pictures, tmp_path, monkeypatch, predictor):
    normal = make_pictures(tmp_path / "good", 28)
    for number in range(0, 28, 3):
        (normal / f"{number:03d}.png").unlink()
    good = [predictor(path) for path in sorted(normal.iterdir())]
    folder = tmp_path / "results"
    flags = ("--normal", normal, "--false_alarms", 0.1, "--save_maps", "--save_masks")
    assert run_predict(monkeypatch, pictures, "--save_path", folder, *PLAIN, *flags) == 0
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["n"] == 18 and calibration["false_alarms"] == 0.1
    assert calibration["threshold"] == sorted(result.score for result in good)[-1]  # floor(0.1 * 19) = 1
    pixel_threshold = sorted(result.map_max for result in good)[-1]
    assert calibration["pixel_threshold"] == pixel_threshold
    coco = json.loads((folder / "regions.json").read_text())
    for row, path in zip(rows(folder), sorted(pictures.iterdir()), strict=True):
        result = predictor(path)
        p_value = (1 + sum(each.score >= result.score for each in good)) / 19
        assert float(row["p_value"]) == pytest.approx(p_value, rel=1e-5)
        assert row["decision"] == ("anomalous" if p_value <= 0.1 else "normal")
        above = result.map > pixel_threshold
        assert float(row["anomalous_share"]) == pytest.approx(above.mean(), rel=1e-5)
        with Image.open(folder / "masks" / row["path"]) as mask, Image.open(folder / "maps" / row["path"]) as values:
            assert np.array_equal(np.asarray(mask) > 0, above)
            np.testing.assert_allclose(map_from_uint16(np.asarray(values), 1.0), result.map, atol=1e-5)
        image = next(image for image in coco["images"] if image["file_name"] == row["path"])
        regions = [region for region in coco["annotations"] if region["image_id"] == image["id"]]
        assert len(regions) == int(row["regions"]) and sum(region["area"] for region in regions) == above.sum()
    assert any(row["decision"] == "anomalous" for row in rows(folder))

    again = tmp_path / "again"  # the calibration serves further runs, also with another share
    flags = ("--calibration", folder / "calibration.json")
    assert run_predict(monkeypatch, pictures, "--save_path", again, *PLAIN, *flags) == 0
    assert (again / "predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()
    assert run_predict(monkeypatch, pictures, "--save_path", again, *PLAIN, *flags, "--false_alarms", 0.5) == 0
    assert json.loads((again / "calibration.json").read_text())["threshold"] < calibration["threshold"]


def test_labelled_data_decide(data, pictures, tmp_path, monkeypatch, predictor):
    folder = tmp_path / "results"
    flags = ("--labelled", data, "--class_name", "metal nut")
    assert run_predict(monkeypatch, pictures, "--save_path", folder, *PLAIN, *flags) == 0
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["made"] == "labelled" and calibration["n"] == 12
    assert 0.6 < calibration["f1"]["image"] <= 1 and 0 < calibration["f1"]["pixel"] <= 1
    assert {row["decision"] for row in rows(folder)} <= {"normal", "anomalous"}


def test_thresholds_by_hand(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "results"
    flags = ("--threshold", 0.3, "--pixel_threshold", 0.4, "--no_report", "--no_overlays")
    assert run_predict(monkeypatch, pictures, "--save_path", folder, *PLAIN, *flags) == 0
    for row in rows(folder):
        assert row["decision"] == ("anomalous" if float(row["score"]) > 0.3 else "normal") and row["threshold"] == "0.3"
    assert not (folder / "report.html").exists() and not (folder / "overlays").exists()


def test_unreadable_pictures_have_a_row_with_the_reason(pictures, tmp_path, monkeypatch, capsys):
    broken = make_pictures(tmp_path / "mixed", 5)
    (broken / "002.png").write_bytes(b"no picture")
    (broken / "003.png").write_bytes((broken / "003.png").read_bytes()[:200])
    Image.MAX_IMAGE_PIXELS, limit = 50_000, Image.MAX_IMAGE_PIXELS
    try:
        Image.new("L", (400, 300)).save(broken / "004.png")
        assert run_predict(monkeypatch, broken, "--save_path", tmp_path / "results", *PLAIN) == 1
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    table = rows(tmp_path / "results")
    assert [bool(row["error"]) for row in table] == [False, False, True, True, True]
    assert "cannot be read as an image" in table[2]["error"] and "more than 50,000 pixels" in table[4]["error"]
    assert all("\n" not in row["error"] and row["score"] == "" for row in table[2:])
    assert "3 pictures could not be read" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "results" / "regions.json").read_text())["images"]) == 2


def test_results_of_an_earlier_run_do_not_stay(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "results"
    flags = ("--threshold", 0.5, "--save_maps")
    assert run_predict(monkeypatch, pictures, "--save_path", folder, *PLAIN, *flags) == 0
    (folder / "notes.txt").write_text("mine")
    assert run_predict(monkeypatch, pictures / "001.png", "--save_path", folder, *PLAIN) == 0
    assert [path.name for path in (folder / "overlays").iterdir()] == ["001.png"]
    assert not (folder / "maps").exists() and not (folder / "calibration.json").exists()
    assert (folder / "notes.txt").exists()


def contents(folder: Path) -> dict[str, bytes]:
    """All results but the log, which has the time of day."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "args.json")
    }


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, kill):
    source = make_pictures(tmp_path / "pictures", 60)
    flags = ("--normal", source / "00[12].png", "--false_alarms", 0.4, *PLAIN, "--num_workers", 2)
    assert run_predict(monkeypatch, source, "--save_path", tmp_path / "straight", *flags) == 0
    folder = tmp_path / "killed"
    process = start("predict", source, "--save_path", folder, *flags)
    while len(list(folder.glob("overlays/*"))) < 20:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.send_signal(kill)
    output = process.communicate(timeout=60)[0]
    assert "Traceback" not in output and not (folder / "predictions.csv").exists()
    if kill == signal.SIGINT:
        assert process.returncode == 130
    looked_at = []
    read = SCRIPT.Predictor.read
    monkeypatch.setattr(SCRIPT.Predictor, "read", lambda self, path: looked_at.append(path) or read(self, path))
    assert run_predict(monkeypatch, source, "--save_path", folder, *flags) == 0
    assert len(looked_at) <= 44
    assert contents(folder) == contents(tmp_path / "straight")


def test_two_processes_share_the_pictures(tmp_path, monkeypatch):
    source = make_pictures(tmp_path / "pictures", 15)
    (source / "004.png").write_bytes(b"")
    flags = ("--normal", source / "01*.png", "--false_alarms", 0.3, *PLAIN, "--num_workers", 1)
    assert run_predict(monkeypatch, source, "--save_path", tmp_path / "one", *flags) == 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "predict.py", source, "--save_path", tmp_path / "two", *flags]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and (tmp_path / "two" / "report.html").exists(), done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_changed_picture_is_looked_at_again(tmp_path, monkeypatch):
    """An interrupted run whose pictures changed in between does not take over what it said of them."""
    source = make_pictures(tmp_path / "pictures", 6)
    folder = tmp_path / "results"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SCRIPT, "write_results", interrupt)
        assert run_predict(patch, source, "--save_path", folder, *PLAIN) == 130
    Image.fromarray(255 - np.asarray(Image.open(source / "002.png"))).save(source / "002.png")
    os.utime(source / "002.png", ns=(1, 1))
    looked_at = []
    read = SCRIPT.Predictor.read
    monkeypatch.setattr(
        SCRIPT.Predictor, "read", lambda self, path: looked_at.append(Path(path).name) or read(self, path)
    )
    assert run_predict(monkeypatch, source, "--save_path", folder, *PLAIN) == 0
    assert looked_at == ["002.png"]


def test_a_full_disk_is_one_line_and_what_is_done_stays(pictures, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"
    with monkeypatch.context() as patch:
        import deploy.run as drawing_run

        written = []

        def fail(path, pixels):
            written.append(path)
            if len(written) > 4:
                raise OSError(28, "No space left on device", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

        patch.setattr(drawing_run, "write_image", fail)
        assert run_predict(patch, pictures, "--save_path", folder, *PLAIN, "--num_workers", 1) == 2
    check_error(capsys, r"overlays/00\d.png: No space left on device")
    assert list(folder.glob("unfinished/*.rows"))
    assert run_predict(monkeypatch, pictures, "--save_path", folder, *PLAIN) == 0


# what is refused


def calibrate(pictures, tmp_path, monkeypatch, *flags) -> Path:
    folder = tmp_path / "calibrated"
    common = ("--save_path", folder, "--device", "cpu", "--normal", pictures, "--false_alarms", 0.2, *flags)
    assert run_predict(monkeypatch, pictures / "000.png", *common) == 0
    return folder / "calibration.json"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--features_list", 5), r"was made with features_list \[6\], and now it is \[5\]"),
        (("--features_list", 6, "--tile", 64), "was made with tile None, and now it is 64"),
        (("--features_list", 6, "--sigma", 2), r"was made with sigma 4\.0, and now it is 2\.0"),
        (("--features_list", 6, "--class_name", "nut"), "was made with class_name object, and now it is nut"),
        (("--features_list", 6, "--method", "clip"), "was made with method anomalyclip, and now it is clip"),
    ],
)
def test_a_calibration_of_anything_else_is_refused(pictures, tmp_path, monkeypatch, capsys, flags, message):
    file = calibrate(pictures, tmp_path, monkeypatch, "--model", "tiny", "--features_list", 6)
    arguments = ("--save_path", tmp_path / "run", "--model", "tiny", "--device", "cpu", "--calibration", file)
    assert run_predict(monkeypatch, pictures, *arguments, *flags) == 2
    check_error(capsys, f"--calibration {file} {message}")


def test_a_calibration_of_another_checkpoint_is_refused(pictures, trained, tmp_path, monkeypatch, capsys):
    file = calibrate(pictures, tmp_path, monkeypatch, "--checkpoint_path", trained / "epoch_1.pth")
    arguments = ("--save_path", tmp_path / "run", "--device", "cpu", "--checkpoint_path", trained / "epoch_2.pth")
    assert run_predict(monkeypatch, pictures, *arguments, "--calibration", file) == 2
    check_error(capsys, "was made with checkpoint_sha256 ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("nowhere",), "SOURCE 'nowhere': no such file or folder"),
        (("nothing/*.png",), "nothing matches"),
        ((ROOT / "README.md",), "neither a picture"),
        (("--false_alarms", 0.1), "--false_alarms goes with --normal or --calibration"),
        (("--normal", "PICTURES", "--false_alarms", 1), "--false_alarms 1.0 is not a share between 0 and 1"),
        (("--normal", "PICTURES", "--false_alarms", 0), "--false_alarms 0.0 is not a share between 0 and 1"),
        (("--normal", "PICTURES"), "--false_alarms 0.05 needs at least 19 normal pictures, and there are 12"),
        (("--normal", "nowhere"), "--normal 'nowhere': no such file"),
        (("--normal", "PICTURES", "--pixel_threshold", 1), "--pixel_threshold goes with --threshold"),
        (("--save_masks",), "--save_masks needs a threshold of pixels"),
        (("--save_masks", "--threshold", 0.5), "--save_masks needs a threshold of pixels"),
        (("--tile", 64, "--overlap", 0.95), r"--overlap 0.95 is not in \[0, 0.9\]"),
        (("--calibration", "nowhere.json"), "nowhere.json: No such file"),
        (("--labelled", "nowhere"), "nowhere: No such file or directory"),
        (("--value_range", 5, 5), "the first value has to be the smaller one"),
        (("--save_path", "/proc/nowhere"), "--save_path /proc/nowhere cannot be written"),
        (("--k_shot", 1, "--method", "winclip"), "--k_shot takes normal pictures"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(pictures, tmp_path, monkeypatch, capsys, flags, message):
    flags = [str(pictures) if flag == "PICTURES" else flag for flag in flags]
    sources = [] if flags[0] in ("nowhere", "nothing/*.png", ROOT / "README.md") else [pictures]
    taps = () if "winclip" in flags else ("--features_list", 6)
    arguments = (*sources, *flags, *(() if "--save_path" in flags else ("--save_path", tmp_path / "run")))
    assert run_predict(monkeypatch, *arguments, "--model", "tiny", "--device", "cpu", *taps) == 2
    check_error(capsys, message)
    assert not (tmp_path / "run" / "predictions.csv").exists()


def test_the_output_folder_inside_a_source(tmp_path, monkeypatch, capsys):
    source = make_pictures(tmp_path / "pictures", 2)
    assert run_predict(monkeypatch, source, "--save_path", source / "results", *PLAIN) == 2
    check_error(capsys, "lies inside the source")
    assert len(list(source.iterdir())) == 2


def test_what_is_only_warned_of(pictures, tmp_path, monkeypatch, capsys):
    flags = ("--normal", pictures, "--false_alarms", 0.2, "--tile", 40, "--save_path", tmp_path / "run")
    assert run_predict(monkeypatch, pictures / "000.png", pictures / "001.png", *PLAIN, *flags) == 0
    output = capsys.readouterr().out
    assert "2 pictures are also among those of --normal; the promise does not hold for them" in output
    assert "windows of 40 pixels are enlarged to the model's 96" in output
    assert all(row["tile_max"] for row in rows(tmp_path / "run"))


def test_pictures_that_use_little_of_their_range_are_warned_of(tmp_path, monkeypatch, capsys):
    (tmp_path / "deep").mkdir()
    values = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (48, 1))
    Image.fromarray(values).save(tmp_path / "deep" / "twelve.png")
    flags = (tmp_path / "deep", *PLAIN, "--no_report", "--no_overlays")
    assert run_predict(monkeypatch, *flags, "--save_path", tmp_path / "one") == 0
    assert "say what is black and white with --value_range LOW HIGH" in capsys.readouterr().out
    assert run_predict(monkeypatch, *flags, "--save_path", tmp_path / "two", "--value_range", 0, 4095) == 0
    assert "--value_range" not in capsys.readouterr().out


def test_help_is_quick():
    check_help("predict.py", "--false_alarms", "torch", "numpy", "PIL", "cv2")
