"""deploy/runtime.py: pictures through an ONNX file, as predict.py would look at them, without torch."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, check_error, check_help, load_script, run_main
from PIL import Image

import AnomalyCLIP_lib
from predict import Predictor
from utils import InputError

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is missing; pip install -r requirements/export.txt")

from deploy import runtime  # noqa: E402
from deploy.runtime import Detector  # noqa: E402

export, predict = load_script("export.py"), load_script("predict.py")

WITHOUT = """
import runpy, sys
for name in ("torch", "torchvision", "open_clip", "scipy", "cv2", "tqdm", "psutil", "sklearn", "onnx", "pandas"):
    sys.modules[name] = None  # to import it is an error
sys.argv = {argv!r}
runpy.run_path({script!r}, run_name="__main__")
"""


def make_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    stream = np.random.RandomState(seed)
    folder.mkdir()
    for number in range(count):
        pixels = np.full((70, 90, 3), stream.randint(60, 120, 3), np.uint8) + stream.randint(
            0, 30, (70, 90, 3), np.uint8
        )
        pixels[20 : 20 + 5 * (number % 3), 30:50] //= 2
        Image.fromarray(pixels).save(folder / f"{number:03d} ü.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", 12)


@pytest.fixture(scope="module")
def graphs(trained, pictures, tmp_path_factory) -> dict[str, Path]:
    """The graph of a checkpoint: as it is, calibrated, and calibrated with windows; their calibrations beside them."""
    folder, checkpoint = tmp_path_factory.mktemp("graphs"), trained / "epoch_2.pth"
    others = make_pictures(folder / "others", 14, seed=5)
    common = ("--checkpoint_path", checkpoint, "--device", "cpu")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, flags in (("plain", None), ("calibrated", ()), ("windows", ("--tile", 40, "--overlap", 0.5))):
            made[name], calibration = folder / f"{name}.onnx", ()
            if flags is not None:
                save_path = folder / name
                normal = ("--normal", others, "--false_alarms", 0.3, "--save_path", save_path)
                run = lambda: sys.exit(predict.predict(predict.parse_args()))  # noqa: E731
                assert run_main(patch, "predict.py", run, pictures, *common, *normal, *flags) == 0
                calibration = ("--calibration", save_path / "calibration.json")
            arguments = ("--checkpoint_path", checkpoint, "--output", made[name], *calibration)
            assert run_main(patch, "export.py", lambda: export.export(export.parse_args()), *arguments) == 0
    return made


def run_runtime(monkeypatch, *arguments) -> int:
    return run_main(monkeypatch, "runtime.py", lambda: sys.exit(runtime.look(runtime.parse_args())), *arguments)


def rows(folder: Path) -> list[dict]:
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def kinds_of_pictures(folder: Path) -> dict[str, Path]:
    """Pictures of many kinds, as files."""
    stream = np.random.RandomState(1)
    rgb = Image.fromarray(stream.randint(0, 256, (61, 83, 3), np.uint8))
    deep = Image.fromarray(stream.randint(0, 65536, (61, 83), np.uint16))
    alpha = Image.fromarray(stream.randint(0, 256, (61, 83, 4), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "rgb.png": rgb,
        "grey.png": rgb.convert("L"),
        "16 bits.png": deep,
        "palette.png": rgb.quantize(16),
        "one bit.png": rgb.convert("1"),
        "rgba.png": alpha,
        "cmyk.tif": rgb.convert("CMYK"),
        "float.tif": Image.fromarray(stream.rand(61, 83).astype(np.float32)),
    }
    for name, image in images.items():
        image.save(folder / name)
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.resize((96, 96)).save(folder / "own size.png")
    rgb.resize((400, 30)).save(folder / "long.png")
    return {path.name: path for path in folder.iterdir()}


def test_pictures_come_in_as_into_the_model(graphs, tmp_path):
    detector, model = Detector(graphs["plain"]), AnomalyCLIP_lib.load("tiny")
    from deploy.reader import load_image

    for name, path in kinds_of_pictures(tmp_path).items():
        pixels, resized = detector.read(path)
        expected = model.preprocess(load_image(path))
        mean, std = (np.float32(detector.metadata[each]).reshape(3, 1, 1) for each in ("mean", "std"))
        assert np.array_equal(resized, model.resize(load_image(path)).numpy()), name
        np.testing.assert_allclose((resized.astype(np.float32) / 255 - mean) / std, expected, atol=1e-6, err_msg=name)
        assert pixels.shape[2] == 3 and resized.shape == (3, 96, 96)


def test_results_are_the_predictors(graphs, trained, pictures):
    detector, predictor = Detector(graphs["plain"]), Predictor(trained / "epoch_2.pth", device="cpu")
    paths = sorted(pictures.iterdir())
    for ours, theirs in zip(detector(paths), predictor(paths), strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-5) and ours.map.shape == (70, 90)
        np.testing.assert_allclose(ours.map, theirs.map, atol=1e-5)


@pytest.mark.parametrize("kind", ["calibrated", "windows"])
def test_decisions_come_from_the_calibration_in_the_file(graphs, pictures, tmp_path, monkeypatch, kind):
    """The same table as predict.py's, whose calibration it is: windows as there, without being told."""
    flags = ("--save_masks", "--save_maps", "--batch_size", 5)
    assert run_runtime(monkeypatch, graphs[kind], pictures, "--save_path", tmp_path / "run", *flags) == 0
    ours, theirs = rows(tmp_path / "run"), rows(graphs[kind].with_suffix(""))
    assert [row["decision"] for row in ours] == [row["decision"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() and one["decision"] in ("normal", "anomalous")
        for name in ("score", "map_max", "threshold", "p_value", "tile_max", "anomalous_share"):
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), abs=1e-4), name
        assert bool(one["tile_max"]) == (kind == "windows")
    for folder in ("maps", "masks"):
        assert len(list((tmp_path / "run" / folder).iterdir())) == 12
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["versions"]["onnxruntime"] and not (tmp_path / "run" / "unfinished").exists()


def test_normal_pictures_make_the_thresholds_that_predict_py_makes(graphs, pictures, tmp_path, monkeypatch):
    others = graphs["plain"].parent / "others"
    flags = ("--normal", others, "--false_alarms", 0.3, "--save_path", tmp_path / "run")
    assert run_runtime(monkeypatch, graphs["plain"], pictures, *flags) == 0
    ours = json.loads((tmp_path / "run" / "calibration.json").read_text())
    theirs = json.loads((graphs["calibrated"].with_suffix("") / "calibration.json").read_text())
    for name in ("threshold", "pixel_threshold", "map_median", "normal_scores"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    assert ours["made_with"] == theirs["made_with"]
    assert len(rows(tmp_path / "run")) == 12 and all(row["decision"] for row in rows(tmp_path / "run"))


def test_no_other_library_is_needed(graphs, pictures, tmp_path):
    """As a process of its own, in which torch and all that comes with it cannot be imported."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    arguments = [str(graphs["calibrated"]), str(pictures), str(tmp_path / "broken.png"), "--save_maps", "--save_masks"]
    argv = ["runtime.py", *arguments, "--save_path", str(tmp_path / "run"), "--threads", "1"]
    code = WITHOUT.format(argv=argv, script=str(ROOT / "deploy" / "runtime.py"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr, done.stderr
    table = rows(tmp_path / "run")
    assert len(table) == 13 and table[-1]["error"].startswith("cannot be read as an image")
    assert {row["decision"] for row in table[:-1]} <= {"normal", "anomalous"}
    assert "1 pictures could not be read" in done.stdout


def test_an_interrupted_run_goes_on(graphs, pictures, tmp_path, monkeypatch):
    arguments = (graphs["calibrated"], pictures, "--save_path", tmp_path / "run", "--num_workers", 1, "--batch_size", 2)
    with monkeypatch.context() as patch:
        batches = []

        def predict(self, images):
            batches.append(images)
            if len(batches) > 3:
                raise KeyboardInterrupt
            return original(self, images)

        original = Detector.predict
        patch.setattr(Detector, "predict", predict)
        assert run_runtime(patch, *arguments) == 130
    assert not (tmp_path / "run" / "predictions.csv").exists()
    looked = []
    patched = lambda self, images: looked.append(len(images)) or original(self, images)  # noqa: E731
    monkeypatch.setattr(Detector, "predict", patched)
    assert run_runtime(monkeypatch, *arguments) == 0
    assert len(rows(tmp_path / "run")) == 12 and 0 < sum(looked) < 12


def test_settings_that_contradict_the_calibration(graphs):
    assert Detector(graphs["windows"]).tile == 40 and Detector(graphs["windows"]).overlap == 0.5
    assert Detector(graphs["calibrated"], tile=0).calibration.n == 14
    for name, options in (
        ("windows", {"tile": 0}),
        ("calibrated", {"tile": 50}),
        ("calibrated", {"value_range": (0, 9)}),
    ):
        with pytest.raises(InputError, match="its calibration was made with (tile|value_range)"):
            Detector(graphs[name], **options)


@pytest.mark.parametrize("shape", [(1, 3, 95, 96), (1, 96, 96, 3), (1, 1, 96, 96)])
def test_images_of_another_size(graphs, shape):
    with pytest.raises(InputError, match=r"takes images \(B, 3, 96, 96\) uint8, and these are"):
        Detector(graphs["plain"]).predict(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tile", -1), "--tile -1 is negative"),
        (("--overlap", 2), r"overlap 2.0 is not in \[0, 0.9\]"),
        (("--value_range", 5, 5), "the first value has to be the smaller one"),
        (("--save_masks",), "--save_masks needs a calibration, and .*plain.onnx holds none; give --normal"),
        (("--false_alarms", 0.1), "--false_alarms 0.1: a share between 0 and 1, and it goes with --normal"),
        (("--normal", ROOT / "docs" / "panels.png"), "needs at least 19 normal pictures, and there are 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(graphs, pictures, tmp_path, monkeypatch, capsys, flags, message):
    assert run_runtime(monkeypatch, graphs["plain"], pictures, "--save_path", tmp_path / "run", *flags) == 2
    check_error(capsys, message)


def test_a_missing_graph_and_a_missing_library(pictures, tmp_path, monkeypatch, capsys):
    assert run_runtime(monkeypatch, "nowhere.onnx", pictures, "--save_path", tmp_path / "run") == 2
    check_error(capsys, "nowhere.onnx: no such file; make one with export.py")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run_runtime(monkeypatch, "nowhere.onnx", pictures, "--save_path", tmp_path / "run") == 2
    check_error(capsys, "needs onnxruntime; pip install -r deploy/requirements.txt")


def test_help_is_quick():
    check_help("deploy/runtime.py", "--save_masks", "torch", "numpy", "PIL", "onnxruntime")
