"""What test.py writes: scores, kinds of defects, curves; another checkpoint in one folder; every epoch at once."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import SCRIPTS, TINY, check_error, make_data, run
from PIL import Image
from sklearn.metrics import auc, average_precision_score, roc_auc_score

import features
from evaluation import metric_names
from predict import Predictor

MACHINE = TINY[2:]


def read_rows(path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """The small data set with two kinds of defects in each class."""
    root = make_data(tmp_path_factory.mktemp("kinds"))
    meta = json.loads((root / "meta.json").read_text())
    for rows in meta["test"].values():
        for number, row in enumerate(rows):
            row["specie_name"] = ("hole" if number == 1 else "crack") if row["anomaly"] else "good"
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def test_scores_of_all_images(kinds, trained, tmp_path, monkeypatch):
    """One row an image in the order of meta.json; the metrics can be computed from it."""
    checkpoint = trained / "epoch_2.pth"
    arguments = ("--data_path", kinds, "--checkpoint_path", checkpoint, "--save_path", tmp_path, *MACHINE)
    assert run(monkeypatch, "test", *arguments) == 0
    rows = read_rows(tmp_path / "scores.csv")
    meta = json.loads((kinds / "meta.json").read_text())["test"]
    expected = [row for rows in meta.values() for row in rows]
    assert [row["path"] for row in rows] == [row["img_path"] for row in expected]
    assert [row["class"] for row in rows] == [row["cls_name"] for row in expected]
    assert [row["specie"] for row in rows] == [row["specie_name"] for row in expected]
    assert [int(row["label"]) for row in rows] == [row["anomaly"] for row in expected]
    predictor = Predictor(checkpoint, device="cpu")
    for row in rows[:3]:
        pixels, image = predictor.read(kinds / row["path"])
        score, values = predictor.predict(np.stack([image]))
        assert float(row["score"]) == pytest.approx(score[0], abs=1e-6)
        assert float(row["map_max"]) == pytest.approx(values.max(), abs=1e-6)
    classes = json.loads((tmp_path / "metrics.json").read_text())["classes"]
    for name, values in classes.items():
        labels, scores = zip(*((int(r["label"]), float(r["score"])) for r in rows if r["class"] == name), strict=True)
        assert values["image_auroc"] == pytest.approx(100 * roc_auc_score(labels, scores))
        assert values["image_ap"] == pytest.approx(100 * average_precision_score(labels, scores))


@pytest.mark.parametrize("pixels", [False, True])
def test_metrics_of_each_kind_of_defect(kinds, trained, tmp_path, monkeypatch, pixels):
    """Each kind against the normal images of its class: the same as in a data set that holds nothing else."""
    flags = ("--checkpoint_path", trained / "epoch_2.pth", *MACHINE, *(("--pixel_kinds",) if pixels else ()))
    assert run(monkeypatch, "test", "--data_path", kinds, "--save_path", tmp_path / "all", *flags) == 0
    found = json.loads((tmp_path / "all" / "metrics.json").read_text())["kinds"]
    assert found.keys() == {"metal_nut", "tile"} and list(found["tile"]) == ["hole", "crack"]
    meta = json.loads((kinds / "meta.json").read_text())
    meta["test"] = {name: [row for row in rows if row["specie_name"] != "crack"] for name, rows in meta["test"].items()}
    (tmp_path / "holes.json").write_text(json.dumps(meta))
    alone = ("--data_path", kinds, "--meta", tmp_path / "holes.json", "--save_path", tmp_path / "alone", *flags)
    assert run(monkeypatch, "test", *alone) == 0
    content = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    assert content["kinds"] == {}
    for name, values in content["classes"].items():
        expected = values if pixels else {key: value for key, value in values.items() if key.startswith("image")}
        assert found[name]["hole"] == expected


def test_curves(kinds, trained, tmp_path, monkeypatch):
    flags = ("--checkpoint_path", trained / "epoch_2.pth", "--curves", "--metrics", "image-level", *MACHINE)
    assert run(monkeypatch, "test", "--data_path", kinds, "--save_path", tmp_path, *flags) == 0
    rows = read_rows(tmp_path / "curves.csv")
    classes = json.loads((tmp_path / "metrics.json").read_text())["classes"]
    assert list(dict.fromkeys(row["class"] for row in rows)) == list(classes)
    for name, values in classes.items():
        points = [(float(row["x"]), float(row["y"])) for row in rows if (row["class"], row["curve"]) == (name, "roc")]
        assert 100 * auc(*np.array(points).T) == pytest.approx(values["image_auroc"])
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 600


def test_an_interrupted_test_knows_all_scores(kinds, trained, tmp_path, monkeypatch):
    flags = ("--data_path", kinds, "--checkpoint_path", trained / "epoch_2.pth", *MACHINE)
    assert run(monkeypatch, "test", *flags, "--save_path", tmp_path / "straight") == 0
    script, calls = SCRIPTS["test"], []
    with monkeypatch.context() as patch:

        def stop(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        original = script.evaluate
        patch.setattr(script, "evaluate", stop)
        assert run(patch, "test", *flags, "--save_path", tmp_path / "stopped") == 130
    assert run(monkeypatch, "test", *flags, "--save_path", tmp_path / "stopped") == 0
    for name in ("scores.csv", "metrics.json", "table.md"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_another_checkpoint_into_the_same_folder(data, trained, tmp_path, monkeypatch, capsys):
    common = ("--data_path", data, "--save_path", tmp_path / "run", *MACHINE)
    first, second = ("--checkpoint_path", trained / "epoch_1.pth"), ("--checkpoint_path", trained / "epoch_2.pth")
    assert run(monkeypatch, "test", *common, *first, "--vis", "--curves") == 0
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    assert run(monkeypatch, "test", *common, *second) == 2
    check_error(capsys, "run holds results with another checkpoint_sha256; give another folder, or --overwrite")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
    assert run(monkeypatch, "test", *common, *first) == 0  # the same one may go there again
    assert run(monkeypatch, "test", *common, *second, "--overwrite") == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"args.json", "log.txt", "metrics.json", "table.md", "scores.csv"}


def test_more_metrics_are_further_columns(data, trained, tmp_path, monkeypatch):
    flags = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--save_path", tmp_path, *MACHINE)
    assert run(monkeypatch, "test", *flags, "--more_metrics") == 0
    content = json.loads((tmp_path / "metrics.json").read_text())
    expected = ["pixel_auroc", "pixel_aupro", "image_auroc", "image_ap"]
    assert list(content["mean"]) == [*expected, "pixel_ap", "pixel_f1_max", "aupimo", "image_f1_max"]
    assert all(0 <= value <= 100 for values in content["classes"].values() for value in values.values())


def test_names_of_columns():
    assert metric_names("image-level") == ["image_auroc", "image_ap"]
    assert metric_names("image-level", more=[]) == ["image_auroc", "image_ap", "image_f1_max"]
    assert metric_names("pixel-level", True, ["aupimo", "pixel_ap"]) == [
        "pixel_auroc", "pixel_aupro", "pixel_aupro_exact", "pixel_ap", "aupimo",
    ]  # fmt: skip


# every epoch


def test_every_epoch_in_one_pass(data, trained, tmp_path, monkeypatch):
    """The metrics that testing one checkpoint after the other gives; every image is encoded once."""
    common = ("--data_path", data, *MACHINE)
    encoded = []
    original = features.encode
    with monkeypatch.context() as patch:
        patch.setattr(
            features, "encode", lambda method, images: encoded.append(len(images)) or original(method, images)
        )
        flags = ("--checkpoint_path", trained, "--every_epoch", "--save_path", tmp_path / "every")
        assert run(patch, "test", *common, *flags) == 0
    assert sum(encoded) == 12
    content = json.loads((tmp_path / "every" / "epochs.json").read_text())
    assert list(content["epochs"]) == ["1", "2"]
    for epoch, values in content["epochs"].items():
        flags = ("--checkpoint_path", trained / f"epoch_{epoch}.pth", "--save_path", tmp_path / epoch)
        assert run(monkeypatch, "test", *common, *flags) == 0
        alone = json.loads((tmp_path / epoch / "metrics.json").read_text())
        assert values["classes"] == alone["classes"] and values["mean"] == alone["mean"]
    rows = read_rows(tmp_path / "every" / "epochs.csv")
    assert [float(row["image_auroc"]) for row in rows] == [
        values["mean"]["image_auroc"] for values in content["epochs"].values()
    ]
    with Image.open(tmp_path / "every" / "epochs.png") as image:
        assert image.width > 400


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (None, ("--vis",), "--vis goes with one checkpoint"),
        ("file", (), "--every_epoch takes a folder as --checkpoint_path"),
        ("empty", (), "no epoch_N.pth in it"),
        ("other", (), "epoch_1.pth has other settings than .*epoch_2.pth; test it alone"),
    ],
)
def test_every_epoch_refuses(data, trained, checkpoints, tmp_path, monkeypatch, capsys, change, flags, message):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    if change != "empty":
        shutil.copy(trained / "epoch_2.pth", folder)
        shutil.copy(checkpoints["coop"] if change == "other" else trained / "epoch_1.pth", folder / "epoch_1.pth")
    path = folder / "epoch_1.pth" if change == "file" else folder
    arguments = ("--data_path", data, "--checkpoint_path", path, "--every_epoch", "--save_path", tmp_path / "run")
    assert run(monkeypatch, "test", *arguments, *flags, *MACHINE) == 2
    check_error(capsys, message)
