"""generate_dataset_json/: each script run on a small fake tree of its layout, against entries written out by hand."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generate_dataset_json.builder import DATASETS
from generate_dataset_json.pixels import choose_range, is_noisy, join_values, values_in

SCRIPTS = Path(__file__).resolve().parents[1] / "generate_dataset_json"


def run(key, root, *options):
    """Exit code, stdout and stderr of a script, run in this process because that is much faster."""
    script = str(SCRIPTS / f"{key}.py")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.syspath_prepend(SCRIPTS)
        patch.setattr(sys, "argv", [script, "--root", str(root), *options])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def tree(root, *paths):
    """Empty files: the scripts look at names only."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def generate(key, root, *options):
    """Rows (split, class, specie, image, anomaly, mask) of the meta.json that the script writes, and its warnings."""
    code, _, errors = run(key, root, *options)
    assert code == 0, errors
    meta = json.loads((root / "meta.json").read_text(encoding="utf-8"))
    assert list(meta) == ["train", "test"]
    return rows_of(meta), errors.splitlines()


def rows_of(meta):
    """Rows (split, class, specie, image, anomaly, mask) of the splits of a meta.json."""
    rows = []
    for split in ("train", "test"):
        for name, entries in meta[split].items():
            for item in entries:
                assert list(item) == ["img_path", "mask_path", "cls_name", "specie_name", "anomaly"]
                assert item["cls_name"] == name
                rows.append((split, name, item["specie_name"], item["img_path"], item["anomaly"], item["mask_path"]))
    return rows


def refused(key, root, *needles, options=()):
    """The script ends with code 2 and one line that holds all needles, and leaves no meta.json."""
    code, _, errors = run(key, root, *options)
    assert code == 2, errors
    *warnings, line = errors.splitlines()
    assert line.startswith("error: ")
    assert all(warning.startswith("warning: ") for warning in warnings)
    for needle in (*needles, ";"):
        assert needle in line
    assert not (Path(root) / "meta.json").exists()


MVTEC_TREE = (
    "bottle/train/good/000.png", "bottle/test/good/001.PNG", "bottle/test/good/Thumbs.db", "bottle/test/good/._001.PNG",
    "bottle/test/broken large/000.png", "bottle/test/broken large/002.png",
    "bottle/ground_truth/broken large/000_mask.png", "bottle/ground_truth/broken large/002_mask.png",
    "license.txt", "notes/readme.png", ".cache/test/x.png",
)  # fmt: skip
MVTEC_ROWS = [
    ("train", "bottle", "good", "bottle/train/good/000.png", 0, ""),
    ("test", "bottle", "broken large", "bottle/test/broken large/000.png", 1,
     "bottle/ground_truth/broken large/000_mask.png"),
    ("test", "bottle", "broken large", "bottle/test/broken large/002.png", 1,
     "bottle/ground_truth/broken large/002_mask.png"),
    ("test", "bottle", "good", "bottle/test/good/001.PNG", 0, ""),
]  # fmt: skip


@pytest.mark.parametrize("key", ["mvtec", "mpdd", "dtd", "sdd"])
def test_mvtec_layout(tmp_path, key):
    tree(tmp_path, *MVTEC_TREE)
    rows, warnings = generate(key, tmp_path)
    assert rows == MVTEC_ROWS
    missing, *other = warnings
    assert missing.startswith(f"warning: {key} without its class ")
    assert any(f"the test split has 1 normal and 2 anomalous images; the published {key} has" in line for line in other)
    assert any("bottle: not a class of the published" in line for line in other) == (key != "mvtec")


def test_sdd_mask_names_and_class_spelling(tmp_path):
    names = ("a.png", "b.png", "c.jpg")
    tree(tmp_path, *(f"electrical_commutators/test/defect/{name}" for name in names))
    masks = ("a.bmp", "b_mask.png", "c_label.bmp")
    tree(tmp_path, *(f"electrical_commutators/ground_truth/defect/{name}" for name in masks))
    rows, warnings = generate("sdd", tmp_path)
    name = "electrical_commutators"
    assert rows == [
        ("test", name, "defect", f"{name}/test/defect/{image}", 1, f"{name}/ground_truth/defect/{mask}")
        for image, mask in zip(names, masks, strict=True)
    ]
    assert len(warnings) == 1
    assert "0 normal and 3 anomalous images; the published sdd has 181 and 74" in warnings[0]


def test_btad(tmp_path):
    tree(
        tmp_path, "01/train/ok/0000.bmp", "01/test/ok/0000.bmp", "01/test/ko/0001.bmp", "01/ground_truth/ko/0001.png",
        "02/test/ko/0001.png", "02/ground_truth/ko/0001.png", "03/test/ko/0001.bmp", "03/ground_truth/ko/0001.bmp",
    )  # fmt: skip
    rows, warnings = generate("btad", tmp_path)
    assert rows == [
        ("train", "01", "ok", "01/train/ok/0000.bmp", 0, ""),
        ("test", "01", "ko", "01/test/ko/0001.bmp", 1, "01/ground_truth/ko/0001.png"),
        ("test", "01", "ok", "01/test/ok/0000.bmp", 0, ""),
        ("test", "02", "ko", "02/test/ko/0001.png", 1, "02/ground_truth/ko/0001.png"),
        ("test", "03", "ko", "03/test/ko/0001.bmp", 1, "03/ground_truth/ko/0001.bmp"),
    ]
    assert len(warnings) == 1


VISA_CSV = """object,split,label,image,mask
pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,pcb1/Data/Masks/Anomaly/000.png
candle,test,normal,candle/Data/Images/Normal/0836.JPG,
candle,train,normal,candle/Data/Images/Normal/0451.JPG,
"""
VISA_FILES = (
    "pcb1/Data/Images/Anomaly/000.JPG", "pcb1/Data/Masks/Anomaly/000.png", "candle/Data/Images/Normal/0836.JPG",
    "candle/Data/Images/Normal/0451.JPG", "candle/Data/Images/Normal/not in the csv.JPG",
)  # fmt: skip


@pytest.mark.parametrize("place", ["split_csv/1cls.csv", "1cls.csv"])
def test_visa(tmp_path, place):
    tree(tmp_path, place, *VISA_FILES)
    (tmp_path / place).write_text(VISA_CSV)
    rows, warnings = generate("visa", tmp_path)
    assert rows == [
        ("train", "candle", "normal", "candle/Data/Images/Normal/0451.JPG", 0, ""),
        ("test", "candle", "normal", "candle/Data/Images/Normal/0836.JPG", 0, ""),
        ("test", "pcb1", "anomaly", "pcb1/Data/Images/Anomaly/000.JPG", 1, "pcb1/Data/Masks/Anomaly/000.png"),
    ]
    assert "visa without its class capsules, cashew" in warnings[0]
    assert "1 normal and 1 anomalous images; the published visa has 962 and 1200" in warnings[1]


@pytest.mark.parametrize(
    ("old", "new", "needle"),
    [
        ("0836.JPG", "0837.JPG", "1cls.csv:3: image 'candle/Data/Images/Normal/0837.JPG' is not in"),
        ("Anomaly/000.png", "Anomaly/001.png", "1cls.csv:2: mask"),
        ("pcb1/Data/Masks/Anomaly/000.png", "", "1cls.csv:2: mask ''"),
        ("candle/Data/Images/Normal/0836.JPG", "../a.JPG", "1cls.csv:3: image '../a.JPG' is outside"),
        ("candle/Data/Images/Normal/0836.JPG", "/a.JPG", "1cls.csv:3: image '/a.JPG' is outside"),
        ("0451", "0836", ""),
        ("object,", "class,", "columns are not object,split,label,image,mask"),
        ("train,normal", "val,normal", "1cls.csv:4: unknown split 'val'"),
        ("normal,candle", "good,candle", "1cls.csv:3: unknown split 'test' or label 'good'"),
        ("0451.JPG,", "0451.JPG", "1cls.csv:4: has fewer columns"),
    ],
)
def test_bad_visa_csv(tmp_path, old, new, needle):
    tree(tmp_path, *VISA_FILES)
    (tmp_path / "1cls.csv").write_text(VISA_CSV.replace(old, new))
    if needle:
        refused("visa", tmp_path, needle)
    else:  # one image in two splits is the csv's own business
        assert len(generate("visa", tmp_path)[0]) == 3


def test_visa_image_listed_twice(tmp_path):
    tree(tmp_path, *VISA_FILES)
    (tmp_path / "1cls.csv").write_text(VISA_CSV + VISA_CSV.splitlines()[2] + "\n")
    refused("visa", tmp_path, "0836.JPG: listed twice in the test split")


def test_dagm(tmp_path):
    tree(
        tmp_path, "Class1/Train/0001.PNG", "Class1/Train/0002.PNG", "Class1/Train/Label/0002_label.PNG",
        "Class1/Train/Label/Labels.txt", "Class1/Test/0003.PNG", "Class1/Test/0004.PNG",
        "Class1/Test/Label/0003_label.PNG", "Class10/Test/0001.PNG", "Class10/Test/Label/0009_label.PNG",
    )  # fmt: skip
    rows, warnings = generate("dagm", tmp_path)
    assert rows == [
        ("train", "Class1", "normal", "Class1/Train/0001.PNG", 0, ""),
        ("train", "Class1", "anomaly", "Class1/Train/0002.PNG", 1, "Class1/Train/Label/0002_label.PNG"),
        ("test", "Class1", "anomaly", "Class1/Test/0003.PNG", 1, "Class1/Test/Label/0003_label.PNG"),
        ("test", "Class1", "normal", "Class1/Test/0004.PNG", 0, ""),
        ("test", "Class10", "normal", "Class10/Test/0001.PNG", 0, ""),
    ]
    assert "1 masks" in warnings[0]
    assert "Class10/Test/Label/0009_label.PNG" in warnings[0]
    (tmp_path / "meta.json").unlink()
    (tmp_path / "Class10/Test/Label/0009_label.PNG").unlink()
    (tmp_path / "Class10/Test/Label").rmdir()
    refused("dagm", tmp_path, "Class10/Test/Label")


def brain_rows(normal, abnormal):
    """One normal image b.jpg and one abnormal image a.JPG, in sorted order."""
    rows = [
        ("test", "brain", normal.split("/")[-1], f"{normal}/b.jpg", 0, ""),
        ("test", "brain", abnormal.split("/")[-1], f"{abnormal}/a.JPG", 1, ""),
    ]
    return sorted(rows, key=lambda row: row[3])


@pytest.mark.parametrize(
    ("key", "normal", "abnormal"),
    [
        ("headct", "brain/test/good", "brain/test/hemorrhage"),
        ("brainmri", "no", "yes"),
        ("brainmri", "brain_tumor_dataset/no", "brain_tumor_dataset/yes"),
        ("br35h", "no", "yes"),
    ],
)
def test_brain(tmp_path, key, normal, abnormal):
    tree(tmp_path, f"{normal}/b.jpg", f"{abnormal}/a.JPG", "pred/x.jpg")
    rows, warnings = generate(key, tmp_path)
    assert rows == brain_rows(normal, abnormal)
    assert len(warnings) == 1
    assert "1 normal and 1 anomalous" in warnings[0]


def test_brainmri_download_holds_the_images_twice(tmp_path):
    for folder in ("", "brain_tumor_dataset/"):
        tree(tmp_path, f"{folder}no/b.jpg", f"{folder}yes/a.JPG")
    assert generate("brainmri", tmp_path)[0] == brain_rows("brain_tumor_dataset/no", "brain_tumor_dataset/yes")


def test_published_size_gives_no_warning(tmp_path):
    tree(tmp_path, *(f"no/{n}.jpg" for n in range(98)), *(f"yes/{n}.jpg" for n in range(155)))
    code, output, errors = run("brainmri", tmp_path)
    assert (code, errors) == (0, "")
    assert output == f"wrote {tmp_path / 'meta.json'}\ntest: 1 classes, 98 normal, 155 anomalous, 0 masks\n"


def test_covid19(tmp_path):
    tree(tmp_path, "NORMAL/1.png", "COVID/2.png", "Viral Pneumonia/3.png", "NORMAL.metadata.xlsx")
    assert generate("covid19", tmp_path)[0] == [
        ("test", "chest", "COVID", "COVID/2.png", 1, ""),
        ("test", "chest", "NORMAL", "NORMAL/1.png", 0, ""),
        ("test", "chest", "Viral Pneumonia", "Viral Pneumonia/3.png", 1, ""),
    ]


def test_isic(tmp_path):
    masks = "skin/ISBI2016_ISIC_Part1_Test_GroundTruth"
    tree(tmp_path, "skin/test/melanoma/ISIC_1.jpg", f"{masks}/ISIC_1_Segmentation.png", "skin/test/good/ISIC_0.jpg")
    assert generate("isic", tmp_path)[0] == [
        ("test", "skin", "good", "skin/test/good/ISIC_0.jpg", 0, ""),
        ("test", "skin", "melanoma", "skin/test/melanoma/ISIC_1.jpg", 1, f"{masks}/ISIC_1_Segmentation.png"),
    ]


@pytest.mark.parametrize(
    ("key", "images", "masks", "name"),
    [
        ("colondb", "images", "masks", "colon"),
        ("clinicdb", "images", "masks", "colon"),
        ("kvasir", "images", "masks", "colon"),
        ("endo", "any name", "masks", "colon"),
        ("tn3k", "test-image", "test-mask", "thyroid"),
    ],
)
def test_image_and_mask_folders(tmp_path, key, images, masks, name):
    tree(tmp_path, *(f"{images}/{n}.jpg" for n in (2, 10, 3)), *(f"{masks}/{n}.png" for n in (10, 3, 2)))
    rows, warnings = generate(key, tmp_path)
    assert rows == [("test", name, images, f"{images}/{n}.jpg", 1, f"{masks}/{n}.png") for n in (10, 2, 3)]
    assert len(warnings) == 1


def test_endo_good_folder(tmp_path):
    tree(tmp_path, "images/1.jpg", "masks/1.jpg", "good/2.jpg")
    assert generate("endo", tmp_path)[0] == [
        ("test", "colon", "good", "good/2.jpg", 0, ""),
        ("test", "colon", "images", "images/1.jpg", 1, "masks/1.jpg"),
    ]


# Data sets as they are downloaded


def test_headct_of_kaggle(tmp_path):
    tree(tmp_path, *(f"head_ct/head_ct/{n:03}.png" for n in range(200)))
    rows = "".join(f"{n}, {int(n < 100)}\n" for n in range(200))
    (tmp_path / "labels.csv").write_text("id, hemorrhage\n" + rows)
    found, warnings = generate("headct", tmp_path)
    assert warnings == []
    assert found == [
        ("test", "brain", "hemorrhage" if n < 100 else "good", f"head_ct/head_ct/{n:03}.png", int(n < 100), "")
        for n in range(200)
    ]


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("", "labels.csv: the file is empty"),
        ("id, hemorrhage\n", "labels.csv: has no rows below its header"),
        ("id, label\n0, 1\n", "labels.csv: its columns are not id,hemorrhage"),
        ("id, hemorrhage\n0\n", "labels.csv:2: has fewer columns"),
        ("id, hemorrhage\n0, 1\n7, 0\n", "labels.csv:3: no image for the id '7' in head_ct"),
        ("id, hemorrhage\nzero, 1\n", "labels.csv:2: no image for the id 'zero'"),
        ("id, hemorrhage\n0, yes\n", "labels.csv:2: hemorrhage is 'yes' instead of 0 or 1"),
        ("id, hemorrhage\n0, 1\n0, 0\n", "000.png: listed twice"),
        ("\x00", "labels.csv"),
    ],
)
def test_headct_with_a_bad_csv(tmp_path, text, needle):
    tree(tmp_path, "head_ct/000.png")
    (tmp_path / "labels.csv").write_text(text)
    refused("headct", tmp_path, needle)


def test_headct_images_without_label(tmp_path):
    tree(tmp_path, "head_ct/000.png", "head_ct/001.png", "head_ct/1.png")
    (tmp_path / "labels.csv").write_text("id,hemorrhage\n0,0\n")
    rows, warnings = generate("headct", tmp_path)
    assert rows == [("test", "brain", "good", "head_ct/000.png", 0, "")]
    assert warnings[0] == "warning: 2 images have no row in labels.csv (first: head_ct/001.png); left out"


def test_isic_of_its_archive(tmp_path):
    images, masks = "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"
    tree(tmp_path, f"{images}/ISIC_3.jpg", f"{masks}/ISIC_3_Segmentation.png")
    rows, warnings = generate("isic", tmp_path)
    assert rows == [("test", "skin", images, f"{images}/ISIC_3.jpg", 1, f"{masks}/ISIC_3_Segmentation.png")]
    assert len(warnings) == 1


@pytest.mark.parametrize("above", ["", "COVID-19_Radiography_Dataset/"])
def test_covid19_since_2021(tmp_path, above):
    for name in ("COVID", "Normal", "Lung_Opacity", "Viral Pneumonia"):
        tree(tmp_path, f"{above}{name}/images/{name}-1.png", f"{above}{name}/masks/{name}-1.png")
    tree(tmp_path, f"{above}COVID.metadata.xlsx", f"{above}README.md.txt")
    rows, warnings = generate("covid19", tmp_path)
    assert rows == [
        ("test", "chest", "COVID", f"{above}COVID/images/COVID-1.png", 1, ""),
        ("test", "chest", "Normal", f"{above}Normal/images/Normal-1.png", 0, ""),
    ]
    assert warnings[0] == "warning: Lung_Opacity, Viral Pneumonia: neither normal nor COVID, left out"
    assert len(warnings) == 2


def test_covid19_without_its_anomalous_images(tmp_path):
    tree(tmp_path, "Normal/images/1.png", "Lung_Opacity/images/1.png")
    refused("covid19", tmp_path, "has no folder COVID")


def picture(path, *boxes, size=(96, 96), value=255):
    """A picture of one grey value in the boxes, black elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    for box in boxes:
        image.paste(value, box)
    image.save(path)


def kolektor(root):
    """Two of KolektorSDD's folders, with a defect in the last part of each."""
    for folder in ("kos01", "kos02"):
        tree(root, *(f"{folder}/Part{n}.jpg" for n in range(3)))
        for n in range(3):
            picture(root / folder / f"Part{n}_label.bmp", *[(40, 40, 60, 60)] * (n == 2))


def kolektor_rows(name, normal, defect):
    """The rows for `kolektor`."""
    rows = []
    for folder in ("kos01", "kos02"):
        rows += [("test", name, normal, f"{folder}/Part{n}.jpg", 0, "") for n in range(2)]
        rows.append(("test", name, defect, f"{folder}/Part2.jpg", 1, f"{folder}/Part2_label.bmp"))
    return rows


def test_sdd_of_vicos(tmp_path):
    kolektor(tmp_path)
    rows, warnings = generate("sdd", tmp_path)
    assert rows == kolektor_rows("electrical commutators", "good", "defect")
    assert len(warnings) == 1
    assert f"{tmp_path}: whole pictures" in run("sdd", tmp_path)[1]
    (tmp_path / "meta.json").unlink()
    (tmp_path / "kos02/Part1_label.bmp").write_bytes(b"BM and no more")
    refused("sdd", tmp_path, "kos02/Part1_label.bmp: cannot be read as an image")
    (tmp_path / "kos02/Part1_label.bmp").unlink()
    refused("sdd", tmp_path, "kos02/Part1.jpg: this abnormal image has no mask", "1 of 3 have none")


def test_custom_black_masks_are_of_normal_images(tmp_path):
    kolektor(tmp_path)
    rows, warnings = generate("custom", tmp_path, "--abnormal", "kos*", "--mask_suffix", "_label.bmp")
    assert rows == kolektor_rows("object", "normal", "anomaly")
    assert warnings == [
        "warning: 4 of 6 masks are all black (first: kos01/Part0_label.bmp); their images are taken as normal"
    ]


VISA_1CLS = (
    "candle/train/good/1.JPG", "candle/test/good/2.JPG", "candle/test/bad/000.JPG", "candle/ground_truth/bad/000.png",
)  # fmt: skip


@pytest.mark.parametrize("above", ["", "1cls/"])
def test_visa_of_its_prepare_data(tmp_path, above):
    tree(tmp_path, *(above + path for path in VISA_1CLS))
    rows, warnings = generate("visa", tmp_path)
    assert rows == [
        ("train", "candle", "normal", f"{above}candle/train/good/1.JPG", 0, ""),
        ("test", "candle", "anomaly", f"{above}candle/test/bad/000.JPG", 1, f"{above}candle/ground_truth/bad/000.png"),
        ("test", "candle", "normal", f"{above}candle/test/good/2.JPG", 0, ""),
    ]
    assert len(warnings) == 2


def test_visa_with_an_empty_csv(tmp_path):
    tree(tmp_path, "split_csv/1cls.csv", *VISA_1CLS)
    refused("visa", tmp_path, "1cls.csv: the file is empty")
    (tmp_path / "split_csv/1cls.csv").write_text("object,split,label,image,mask\n")
    refused("visa", tmp_path, "1cls.csv: has no rows below its header")


@pytest.mark.parametrize(
    ("images", "masks"),
    [("PNG/Original", "PNG/Ground Truth"), ("TIF/Original", "TIF/Ground Truth"), ("Original", "Ground Truth")],
)
def test_clinicdb_of_kaggle(tmp_path, images, masks):
    tree(tmp_path, f"{images}/1.png", f"{masks}/1.png", "metadata.csv")
    rows, warnings = generate("clinicdb", tmp_path)
    assert rows == [("test", "colon", "Original", f"{images}/1.png", 1, f"{masks}/1.png")]
    assert len(warnings) == 1


def test_clinicdb_prefers_what_was_prepared_and_then_png(tmp_path):
    for name, end in (("PNG", "png"), ("TIF", "tif")):
        tree(tmp_path, f"{name}/Original/1.{end}", f"{name}/Ground Truth/1.{end}")
    assert [row[3] for row in generate("clinicdb", tmp_path)[0]] == ["PNG/Original/1.png"]
    tree(tmp_path, "images/1.png", "masks/1.png")
    assert [row[3] for row in generate("clinicdb", tmp_path)[0]] == ["images/1.png"]


@pytest.mark.parametrize("above", ["", "mvtec_loco_anomaly_detection/"])
@pytest.mark.parametrize(("key", "options"), [("mvtec", []), ("custom", ["--mvtec_layout"])])
def test_mvtec_loco_is_refused_by_name(tmp_path, above, key, options):
    for kind in ("logical_anomalies", "structural_anomalies"):
        tree(tmp_path, f"{above}juice/test/{kind}/000.png", f"{above}juice/ground_truth/{kind}/000/000.png")
    tree(tmp_path, f"{above}juice/test/good/000.png", f"{above}juice/train/good/000.png")
    needles = ("is MVTec LOCO AD (juice/test/logical_anomalies)", "several masks an image", "saturation threshold")
    refused(key, tmp_path, *needles, options=options)


def test_own_kinds_called_as_mvtec_locos(tmp_path):
    kind = "logical_anomalies"
    tree(tmp_path, f"a/test/{kind}/0.png", f"a/ground_truth/{kind}/0.png")
    rows, _ = generate("custom", tmp_path, "--mvtec_layout")
    assert rows == [("test", "a", kind, f"a/test/{kind}/0.png", 1, f"a/ground_truth/{kind}/0.png")]


# A folder around the data set

WRAPPED = {
    "mvtec": ("mvtec_anomaly_detection", MVTEC_TREE),
    "visa": ("VisA_20220922", ("split_csv/1cls.csv", *VISA_FILES)),
    "mpdd": ("MPDD", MVTEC_TREE),
    "btad": ("BTech_Dataset_transformed", ("01/test/ko/1.bmp", "01/ground_truth/ko/1.png")),
    "sdd": ("KolektorSDD", ("c/test/d/1.png", "c/ground_truth/d/1.png")),
    "dagm": ("DAGM_KaggleUpload", ("Class1/Test/1.PNG", "Class1/Test/Label/1_label.PNG")),
    "dtd": ("DTD-Synthetic", MVTEC_TREE),
    "headct": ("archive", ("brain/test/good/1.png", "brain/test/bad/1.png")),
    "brainmri": ("archive", ("brain_tumor_dataset/no/1.jpg", "brain_tumor_dataset/yes/1.jpg", "no/1.jpg", "yes/1.jpg")),
    "br35h": ("archive", ("no/1.jpg", "yes/1.jpg", "pred/1.jpg")),
    "covid19": ("archive", ("NORMAL/1.png", "COVID/1.png")),
    "isic": ("archive", ("skin/test/a/1.jpg", "skin/ISBI2016_ISIC_Part1_Test_GroundTruth/1_Segmentation.png")),
    "colondb": ("CVC-ColonDB", ("images/1.png", "masks/1.png")),
    "clinicdb": ("CVC-ClinicDB", ("PNG/Original/1.png", "PNG/Ground Truth/1.png")),
    "kvasir": ("Kvasir-SEG", ("images/1.jpg", "masks/1.jpg")),
    "endo": ("EndoTect", ("some/1.jpg", "masks/1.jpg")),
    "tn3k": ("tn3k", ("test-image/1.jpg", "test-mask/1.jpg")),
}


@pytest.mark.parametrize("key", DATASETS)
def test_one_folder_around_the_data_set_is_looked_through(tmp_path, key):
    wrapper, paths = WRAPPED[key]
    for root in (tmp_path / "bare", tmp_path / "wrapped" / wrapper):
        tree(root, *paths)
        if key == "visa":
            (root / "split_csv/1cls.csv").write_text(VISA_CSV)
    root = tmp_path / "wrapped"
    tree(root, "__MACOSX/._x", f"__MACOSX/{wrapper}/x.png", "readme.txt", "other/notes.txt", ".git/a")
    rows, warnings = generate(key, tmp_path / "bare")
    moved = [(*row[:3], f"{wrapper}/{row[3]}", row[4], row[5] and f"{wrapper}/{row[5]}") for row in rows]
    assert generate(key, root) == (moved, warnings)
    assert f"{root}: the data set lies in the folder {wrapper} in it\n" in run(key, root)[1]


def test_two_folders_that_may_be_the_data_set(tmp_path):
    tree(tmp_path, "a/no/1.jpg", "a/yes/1.jpg", "b/no/1.jpg", "b/yes/1.jpg")
    refused("br35h", tmp_path, "has no folder no", "it is in several folders here: a, b")


def test_a_fault_inside_the_wrapping_is_named(tmp_path):
    tree(tmp_path, "Kvasir-SEG/images/1.jpg", "Kvasir-SEG/masks/2.jpg", "other/a.txt")
    refused("kvasir", tmp_path, f"{tmp_path}/Kvasir-SEG/images/1.jpg: this abnormal image has no mask")


def test_colondb_train_looks_through_a_folder(tmp_path):
    tree(tmp_path, "a/CVC-ColonDB/images/1.png", "a/CVC-ColonDB/masks/1.png", "b/1.jpg", "b/2.dcm")
    options = ["--colondb", str(tmp_path / "a"), "--normal", str(tmp_path / "b")]
    rows, warnings = generate("colondb_train", tmp_path / "c", *options)
    assert [row[3] for row in rows] == ["images/1.png", "normal/1.jpg"]
    assert warnings[0] == "warning: 1 file left out, not pictures: .dcm (1)"


# Spellings, and what is passed over


@pytest.mark.parametrize("masks", ["groundtruth", "Ground_Truth", "GroundTruth", "Ground Truth", "GROUND-TRUTH"])
def test_spellings_of_ground_truth_and_case(tmp_path, masks):
    tree(tmp_path, "a/Test/Bad/1.png", f"a/{masks}/bad/1_mask.png", "a/Train/Good/1.png")
    rows, _ = generate("mvtec", tmp_path)
    assert rows == [
        ("train", "a", "Good", "a/Train/Good/1.png", 0, ""),
        ("test", "a", "Bad", "a/Test/Bad/1.png", 1, f"a/{masks}/bad/1_mask.png"),
    ]


@pytest.mark.parametrize(("of_images", "of_masks"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_spellings_of_letters_match(tmp_path, of_images, of_masks):
    def image(text):
        return unicodedata.normalize(of_images, text)

    def mask(text):
        return unicodedata.normalize(of_masks, text)

    root = tmp_path / "mvtec"
    tree(root, image("a/test/Stöße/für 1.png"), mask("a/ground_truth/Stöße/für 1_mask.png"))
    expected = (image("a/test/Stöße/für 1.png"), 1, mask("a/ground_truth/Stöße/für 1_mask.png"))
    assert [row[3:] for row in generate("mvtec", root)[0]] == [expected]
    for options in (
        ["--mvtec_layout"],
        ["--abnormal", mask("a/test/Stöße"), "--masks", image("a/ground_truth/*öß*"), "--mask_suffix", "_mask.png"],
    ):
        assert [row[3:] for row in generate("custom", root, *options)[0]] == [expected]
    tree(tmp_path / "dagm", image("Class1/Test/ü.PNG"), mask("Class1/Test/Label/ü_label.PNG"))
    assert [row[4] for row in generate("dagm", tmp_path / "dagm")[0]] == [1]


JUNK = (
    ".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", ".ipynb_checkpoints/1.png", "__MACOSX/1.png",
)  # fmt: skip


def test_what_programs_leave_is_passed_over(tmp_path):
    folders = ("", "a/", "a/test/", "a/test/good/", "a/test/bad/", "a/ground_truth/", "a/ground_truth/bad/")
    tree(tmp_path, "a/test/good/1.png", "a/test/bad/1.png", "a/ground_truth/bad/1_mask.png")
    tree(tmp_path, *(folder + name for folder in folders for name in JUNK))
    tree(tmp_path, "__MACOSX/a/test/bad/1.png", "a/ground_truth/.x/1.png")
    for key, options in (("custom", ["--mvtec_layout"]), ("mvtec", [])):
        rows, warnings = generate(key, tmp_path, *options)
        assert [row[3] for row in rows] == ["a/test/bad/1.png", "a/test/good/1.png"]
        assert not [line for line in warnings if "left out" in line]
    rows, warnings = generate("custom", tmp_path, "--normal", ".", "--class_name", "x")
    assert [row[3] for row in rows] == ["a/ground_truth/bad/1_mask.png", "a/test/bad/1.png", "a/test/good/1.png"]
    assert warnings == []
    assert len(generate("custom", tmp_path, "--normal", "**/*.png")[0]) == 3


def test_files_that_are_no_pictures_are_counted(tmp_path):
    tree(tmp_path, "a/test/good/1.png", "a/test/bad/2.dcm", "a/test/good/1.XML", "a/test/good/2.xml", "a/test/good/b")
    tree(tmp_path, "a/test/good/readme.txt", "a/test/good/LICENSE", "a/test/good/labels.csv", "a/notes.txt")
    line = "warning: 4 files left out, not pictures: .xml (2), .dcm (1), no suffix (1)"
    assert line in generate("mvtec", tmp_path)[1]
    assert generate("custom", tmp_path, "--mvtec_layout")[1] == [line]
    assert generate("custom", tmp_path, "--normal", "a/test")[1] == [line]
    assert generate("custom", tmp_path, "--normal", "a/test/*/*")[1] == [line]
    assert generate("custom", tmp_path, "--normal", "a/test/good/*.png")[1] == []
    (tmp_path / "meta.json").unlink()
    needles = ("finds no images", "(1 file left out, not pictures: .dcm (1))")
    refused("custom", tmp_path, *needles, options=["--normal", "*/*/bad"])
    tree(tmp_path / "dcm", "a/test/bad/1.dcm")
    refused("mvtec", tmp_path / "dcm", "hold no images (1 file left out, not pictures: .dcm (1))")


def test_suffixes_of_newer_formats(tmp_path):
    suffixes = ("avif", "jp2", "j2k", "jpx", "heic", "HEIF")
    tree(tmp_path, *(f"no/{n}.{suffix}" for n, suffix in enumerate(suffixes)), "yes/1.heic")
    rows, warnings = generate("br35h", tmp_path)
    assert len(rows) == 7
    assert len(warnings) == 1


# Links that lead back


def looped(root):
    """A folder of one image, with two links to itself, one from above, and one to nothing but itself."""
    tree(root, "good/1.png")
    for name in ("a", "b"):
        (root / "good" / name).symlink_to(".")
    (root / "above").symlink_to(".")
    (root / "itself").symlink_to("itself")


PLACES = ("good", "**/good", "**/*.png", "good/*", "good/**", "*", ".", "good/a", "good/[ab]/b")


@pytest.mark.parametrize("where", PLACES)
def test_custom_visits_each_real_folder_once(tmp_path, where):
    looped(tmp_path)
    expected = {"good/a": "good/a/1.png", "good/[ab]/b": "good/a/b/1.png"}.get(where, "good/1.png")
    rows, _ = generate("custom", tmp_path, "--normal", where)
    assert [row[3] for row in rows] == [expected]


def test_one_image_by_two_ways_is_normal_or_abnormal(tmp_path):
    looped(tmp_path)
    options = ["--normal", "good", "--abnormal", "good/a/*.png"]
    refused("custom", tmp_path, "good/a/1.png: found by --normal and by --abnormal", options=options)


def test_layouts_take_each_real_folder_once(tmp_path):
    tree(tmp_path, "a/test/good/1.png", "a/test/bad/1.png", "a/ground_truth/bad/1_mask.png")
    for link, target in (("b", "a"), ("c", "."), ("a/test/again", "good"), ("a/test/up", ".."), ("a/test/good/x", ".")):
        (tmp_path / link).symlink_to(target)
    assert [row[3] for row in generate("mvtec", tmp_path)[0]] == ["a/test/bad/1.png", "a/test/good/1.png"]


def test_folders_that_are_links(tmp_path):
    tree(tmp_path, "sound/1.png", "elsewhere/ill/1.png")
    (tmp_path / "no").symlink_to("sound")
    (tmp_path / "yes").symlink_to("elsewhere/ill")
    assert [row[3] for row in generate("br35h", tmp_path)[0]] == ["no/1.png", "yes/1.png"]


# The medical set to train on

POLYPS = ("polyps/images/1.jpg", "polyps/images/2.png", "polyps/masks/1.png", "polyps/masks/2.png")
HEALTHY = ("healthy/1.jpg", "healthy/cecum/1.jpg", "healthy/cecum/readme.txt", "healthy/.trash/2.jpg")
COLON_ROWS = [
    ("test", "colon", "images", "images/1.jpg", 1, "masks/1.png"),
    ("test", "colon", "images", "images/2.png", 1, "masks/2.png"),
    ("test", "colon", "normal", "normal/1.jpg", 0, ""),
    ("test", "colon", "normal", "normal/cecum/1.jpg", 0, ""),
]


def colon_sources(folder):
    """Options for colondb_train.py; every file holds its own name."""
    tree(folder, *POLYPS, *HEALTHY)
    for path in (*POLYPS, *HEALTHY):
        (folder / path).write_text(path)
    return ["--colondb", str(folder / "polyps"), "--normal", str(folder / "healthy")]


@pytest.mark.parametrize("links", [True, False])
def test_colondb_train(tmp_path, monkeypatch, links):
    root, options = tmp_path / "new" / "root", colon_sources(tmp_path)
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("another file system")))
    code, output, errors = run("colondb_train", root, *options)
    assert code == 0
    assert errors == f"warning: {tmp_path}/polyps has 2 anomalous images; the published colondb has 380\n"
    assert output.splitlines() == [
        f"{root}: {6 * links} files linked, {6 * (not links)} copied, 0 there before",
        f"wrote {root}/meta.json",
        "test: 1 classes, 2 normal, 2 anomalous, 2 masks",
    ]
    written = (root / "meta.json").read_bytes()
    assert generate("colondb_train", root, *options)[0] == COLON_ROWS
    assert (root / "meta.json").read_bytes() == written
    assert (root / "normal/cecum/1.jpg").read_text() == "healthy/cecum/1.jpg"
    assert (root / "masks/2.png").read_text() == "polyps/masks/2.png"
    assert (root / "masks/2.png").samefile(tmp_path / "polyps/masks/2.png") == links
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {"meta.json", *(row[3] for row in COLON_ROWS), *(row[5] for row in COLON_ROWS if row[5])}


def test_colondb_train_follows_links_and_takes_its_own_folders(tmp_path):
    options = colon_sources(tmp_path)
    (tmp_path / "elsewhere.png").write_text("polyp 3")
    (tmp_path / "polyps/images/3.png").symlink_to("../../elsewhere.png")
    tree(tmp_path, "polyps/masks/3.png")
    root = tmp_path / "root"
    assert len(generate("colondb_train", root, *options)[0]) == 5
    assert (root / "images/3.png").read_text() == "polyp 3" and not (root / "images/3.png").is_symlink()
    rows, _ = generate("colondb_train", root, "--colondb", str(root), "--normal", str(root / "normal"))
    assert rows[-2:] == COLON_ROWS[-2:] and len(rows) == 5


def test_colondb_train_of_the_published_size_gives_no_warning(tmp_path):
    tree(tmp_path, *(f"a/{folder}/{n}.png" for n in range(380) for folder in ("images", "masks")), "b/1.jpg")
    code, output, errors = run(
        "colondb_train", tmp_path / "c", "--colondb", str(tmp_path / "a"), "--normal", str(tmp_path / "b")
    )
    assert (code, errors) == (0, "")
    assert "test: 1 classes, 1 normal, 380 anomalous, 380 masks" in output


def test_colondb_train_refuses(tmp_path):
    root, options = tmp_path / "root", colon_sources(tmp_path)

    def wrong(*needles, options=options):
        refused("colondb_train", root, *needles, options=options)

    wrong("--colondb", "nowhere", "No such file", options=["--colondb", str(tmp_path / "nowhere"), *options[2:]])
    wrong("--normal", "nowhere", "No such file", options=[*options[:2], "--normal", str(tmp_path / "nowhere")])
    wrong("has no folder images", "--colondb", options=["--colondb", str(tmp_path / "healthy"), *options[2:]])
    tree(tmp_path, "texts/a.txt")
    wrong("--normal", "holds no images", options=[*options[:2], "--normal", str(tmp_path / "texts")])
    wrong("is an image or mask of --colondb, too", options=[*options[:2], "--normal", str(tmp_path / "polyps")])
    tree(tmp_path, "polyps/images/3.png")
    wrong("polyps/images/3.png: this abnormal image has no mask", "1 of 3 have none")
    (tmp_path / "polyps/images/3.png").unlink()
    assert not root.exists()
    tree(root, "images/2.png")
    wrong("root/images/2.png: is there but differs from", "polyps/images/2.png")
    assert [path.name for path in root.rglob("*")] == ["images", "2.png"]
    (tmp_path / "file").touch()
    assert run("colondb_train", tmp_path / "file" / "root", *options)[0] == 2


def test_colondb_train_follows_links_once(tmp_path):
    options = colon_sources(tmp_path)
    (tmp_path / "healthy/again").symlink_to(".")
    tree(tmp_path, "more/5.jpg")
    (tmp_path / "healthy/more").symlink_to("../more")
    rows, _ = generate("colondb_train", tmp_path / "root", *options)
    assert [row[3] for row in rows[2:]] == ["normal/1.jpg", "normal/cecum/1.jpg", "normal/more/5.jpg"]


# Masks are matched by name


def test_missing_mask_is_an_error_and_does_not_shift_the_others(tmp_path):
    tree(tmp_path, *MVTEC_TREE)
    (tmp_path / "bottle/ground_truth/broken large/000_mask.png").unlink()
    refused(
        "mvtec", tmp_path, f"{tmp_path}/bottle/test/broken large/000.png", "no mask", "000_mask.*", "1 of 2 have none"
    )


def test_missing_mask_folder(tmp_path):
    tree(tmp_path, "bottle/test/broken/000.png")
    refused("mvtec", tmp_path, "bottle/ground_truth/broken")


def test_orphan_mask_is_a_warning(tmp_path):
    tree(tmp_path, *MVTEC_TREE, "bottle/ground_truth/broken large/001_mask.png")
    rows, warnings = generate("mvtec", tmp_path)
    assert rows == MVTEC_ROWS
    assert "1 masks" in warnings[0]
    assert "001_mask.png" in warnings[0]


def test_two_masks_for_an_image(tmp_path):
    tree(tmp_path, "images/1.jpg", "masks/1.jpg", "masks/1.png")
    refused("kvasir", tmp_path, "images/1.jpg", "several masks", "masks/1.jpg, masks/1.png")


def test_two_images_for_a_mask(tmp_path):
    tree(tmp_path, "images/1.jpg", "images/1.png", "masks/1.png")
    refused("kvasir", tmp_path, "masks/1.png", "images/1.jpg and images/1.png")


# Roots that do not hold the data set


@pytest.mark.parametrize("key", DATASETS)
def test_layout_not_found(tmp_path, key):
    tree(tmp_path, "something/else.txt")
    refused(key, tmp_path, str(tmp_path), "--root")


@pytest.mark.parametrize(("key", "folder"), [("mvtec", "bottle/test/good"), ("dagm", "Class1/Test/Label")])
def test_folders_without_images(tmp_path, key, folder):
    tree(tmp_path, f"{folder}/readme.txt")
    refused(key, tmp_path, "hold no images")


def test_one_folder_without_images(tmp_path):
    tree(tmp_path, "no/readme.txt", "yes/1.jpg")
    refused("br35h", tmp_path, str(tmp_path / "no"), "no images here")


def test_root_is_missing_or_empty_or_a_file(tmp_path):
    refused("mvtec", tmp_path / "nowhere", "--root", "nowhere", "No such file or directory")
    (tmp_path / "empty").mkdir()
    refused("mvtec", tmp_path / "empty", "empty", "the folder is empty")
    (tmp_path / "file").touch()
    refused("mvtec", tmp_path / "file", "Not a directory")


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\\b.jpg", "\udcff.jpg"])  # the last is the byte 0xff on disk
def test_file_names_that_json_cannot_hold_everywhere(tmp_path, name):
    tree(tmp_path, "no/1.jpg", "yes/1.jpg", f"no/{name}")
    refused("br35h", tmp_path, "rename the file")


# The file that is written


def test_same_bytes_whatever_the_place_and_order_of_creation(tmp_path):
    paths = [f"images/{name}.jpg" for name in ("b", "a", "ü ö", "日本", "B")]
    masks = [path.replace("images", "masks") for path in paths]
    written = []
    for place, files in (("one", paths + masks), ("two/deeper", list(reversed(paths + masks)))):
        tree(tmp_path / place, *files)
        generate("kvasir", tmp_path / place)
        written.append((tmp_path / place / "meta.json").read_bytes())
    assert written[0] == written[1]
    assert "images/日本.jpg".encode() in written[0]
    assert b"\r" not in written[0]


def test_out_and_relative_root_from_another_folder(tmp_path):
    tree(tmp_path, "data/no/1.jpg", "data/yes/1.jpg")
    command = [sys.executable, str(SCRIPTS / "br35h.py"), "--root", "data", "--out", "meta of br35h.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "data/meta.json").exists()
    assert json.loads((tmp_path / "meta of br35h.json").read_text())["test"]["brain"][0]["img_path"] == "no/1.jpg"
    refused("br35h", tmp_path / "data", "nowhere", "cannot be written", options=["--out", str(tmp_path / "nowhere/a")])
    refused("br35h", tmp_path / "data", "cannot be written", options=["--out", str(tmp_path / "data")])


WITHOUT_LIBRARIES = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "numpy", "scipy", "PIL", "tqdm"]))
sys.path.insert(0, {str(SCRIPTS)!r})
for script, *options in eval(sys.argv[1]):
    sys.argv = [script, *options]
    try:
        runpy.run_path({str(SCRIPTS)!r} + f"/{{script}}.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
"""


def test_scripts_need_no_library_where_they_look_at_names_only(tmp_path):
    tree(tmp_path, "no/1.jpg", "yes/1.jpg")
    calls = [(key, "--help") for key in (*DATASETS, "colondb_train", "custom")]
    calls += [("br35h", "--root", str(tmp_path))]
    calls += [("custom", "--root", str(tmp_path), "--normal", "no", "--abnormal", "yes")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIBRARIES, repr(calls)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_data_set_has_a_script_with_help():
    names = {path.stem for path in SCRIPTS.glob("*.py")}
    assert names == {*DATASETS, "colondb_train", "custom", "builder", "listing", "pixels"}
    for key in (*DATASETS, "colondb_train", "custom"):
        code, output, _ = run(key, ".", "--help")
        assert code == 0
        assert "--root" in output
        assert "--out" in output


@pytest.mark.parametrize("out", [[], ["--out", "elsewhere.json"]])
def test_a_file_that_cannot_be_written(tmp_path, monkeypatch, out):
    tree(tmp_path, "no/1.jpg", "yes/1.jpg")
    monkeypatch.chdir(tmp_path)

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.replace", read_only)
    needles = ["elsewhere.json", "with --out"] if out else ["--out FILE", "train.py and test.py", "--meta FILE"]
    refused("br35h", tmp_path, "cannot be written (Read-only file system)", *needles, options=out)
    assert not (tmp_path / "elsewhere.json").exists()


def test_out_replaces_regular_files_only(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    tree(root, "no/1.jpg", "yes/1.jpg")
    out.mkdir()
    os.mkfifo(out / "fifo")
    (out / "link").symlink_to("fifo")
    for place in (out, out / "fifo", out / "link", "/dev/null"):
        refused("br35h", root, f"{place}: cannot be written, for it is no regular file", options=["--out", str(place)])
    assert (out / "fifo").is_fifo() and Path("/dev/null").is_char_device()
    (out / "file").touch()
    (out / "to file").symlink_to("file")
    for name in ("to file", "new"):
        output = run("br35h", root, "--out", str(out / name))[1]
        assert f"wrote {out / name} (give it to train.py and test.py as --meta)\n" in output
    assert (out / "to file").is_symlink()
    assert (out / "file").read_bytes() == (out / "new").read_bytes()


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("mvtec", ["--root", ""]),
        ("mvtec", ["--out", ""]),
        ("custom", ["--normal", ""]),
        ("custom", ["--normal", "no", ""]),
        ("custom", ["--abnormal", ""]),
        ("custom", ["--normal", "no", "--masks", ""]),
        ("custom", ["--normal", "no", "--mask_suffix", ""]),
        ("custom", ["--normal", "no", "--class_name", ""]),
        ("custom", ["--normal", "no", "--value_range", ""]),
        ("custom", ["--mvtec_layout", "--mask_suffix", ""]),
        ("colondb_train", ["--normal", "x", "--colondb", ""]),
        ("colondb_train", ["--colondb", "x", "--normal", ""]),
    ],
)
def test_empty_values_are_refused(tmp_path, key, options):
    tree(tmp_path, "no/1.jpg")
    flag = [option for option in options if option.startswith("--")][-1]
    refused(key, tmp_path, f"error: {flag}: an empty value", options=options)


def test_names_with_line_breaks_and_the_like(tmp_path):
    tree(tmp_path, "no/1.jpg", "yes/1.jpg")
    refused("custom", tmp_path, r"--normal 'a\nb': finds no images", options=["--normal", "a\nb"])
    refused("br35h", tmp_path / "a\nb", r"a\nb", "No such file")
    assert run("br35h", tmp_path, "--out", str(tmp_path / "a\nb"))[1].startswith(f"wrote '{tmp_path}/a\\nb' (")
    tree(tmp_path / "kind", "a/test/b\nad/1.png")
    refused("mvtec", tmp_path / "kind", r"a/ground_truth/b\nad")
    for name in ("a\nb", "a\tb", "\udcff", "a\u2028b"):
        options = ["--normal", "no", "--class_name", name]
        refused("custom", tmp_path, f"class name {name!r} holds a character that cannot be printed", options=options)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\udcff", "a\u2028b"])  # the third is the byte 0xff on disk
def test_class_folders_that_cannot_be_named(tmp_path, name):
    tree(tmp_path, f"{name}/test/good/1.png")
    for key, options in (("mvtec", []), ("custom", ["--mvtec_layout"]), ("custom", ["--class_from_folder"])):
        more = ["--normal", "."] if options == ["--class_from_folder"] else []
        refused(key, tmp_path, repr(name)[1:-1], "rename the", options=[*options, *more])


def test_names_that_the_terminal_cannot_show(tmp_path):
    tree(tmp_path, "ü/no/1.jpg", "ü/yes/1.jpg")
    command = [sys.executable, str(SCRIPTS / "br35h.py"), "--root", str(tmp_path / "ü")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {tmp_path}/\\xfc/meta.json\n")


# Names of the data sets


def test_seventeen_data_sets():
    assert len(DATASETS) == 17
    assert sum(len(facts.classes) for facts in DATASETS.values()) == 15 + 12 + 6 + 3 + 1 + 10 + 12 + 10


# Your own images

TILES = (
    "MT_Free/Imgs/a 1.jpg", "MT_Free/Imgs/a 1.png", "MT_Break/Imgs/b.jpg", "MT_Break/Imgs/b.png",
    "MT_Blowhole/Imgs/b.jpg", "MT_Blowhole/Imgs/b.png",
)  # fmt: skip
TILE_ROWS = [
    ("test", "tile", "anomaly", "MT_Blowhole/Imgs/b.jpg", 1, "MT_Blowhole/Imgs/b.png"),
    ("test", "tile", "anomaly", "MT_Break/Imgs/b.jpg", 1, "MT_Break/Imgs/b.png"),
    ("test", "tile", "normal", "MT_Free/Imgs/a 1.jpg", 0, ""),
]


@pytest.mark.parametrize(
    "where",
    [
        ["--normal", "MT_Free/Imgs/*.jpg", "--abnormal", "MT_B*/Imgs/*.jpg"],
        ["--normal", "MT_Free", "--abnormal", "MT_Blowhole", "MT_Break/"],
        ["--normal", "MT_Free/Imgs/a 1.jpg", "--abnormal", "**/b.*"],
    ],
)
def test_custom_masks_beside_the_images(tmp_path, where):
    tree(tmp_path, *TILES)
    rows, warnings = generate("custom", tmp_path, *where, "--mask_suffix", ".png", "--class_name", "tile")
    assert rows == TILE_ROWS
    assert warnings == []


def test_custom_without_masks(tmp_path):
    tree(tmp_path, *TILES)
    rows, _ = generate("custom", tmp_path, "--abnormal", "MT_Break/Imgs/*.jpg", "--split", "train")
    assert rows == [("train", "object", "anomaly", "MT_Break/Imgs/b.jpg", 1, "")]


def test_custom_class_from_folder(tmp_path):
    tree(tmp_path, "nut/ok/1.png", "nut/bad/1.png", "bolt/ok/1.png", "2.png")
    options = ["--normal", "*/ok", "--abnormal", "nut/bad", "--class_from_folder"]
    assert generate("custom", tmp_path, *options)[0] == [
        ("test", "bolt", "normal", "bolt/ok/1.png", 0, ""),
        ("test", "nut", "anomaly", "nut/bad/1.png", 1, ""),
        ("test", "nut", "normal", "nut/ok/1.png", 0, ""),
    ]
    (tmp_path / "meta.json").unlink()
    refused("custom", tmp_path, "2.png", options=["--normal", "2.png", "--class_from_folder"])


def test_custom_mask_folder(tmp_path):
    tree(
        tmp_path, "bad/scratch/1.JPG", "bad/dent/1.JPG", "bad/dent/2.JPG", "bad/masks/scratch/1_m.png",
        "bad/masks/dent/1_m.png", "bad/masks/2_m.tif", "bad/masks/dent/1.png",
    )  # fmt: skip
    options = ["--abnormal", "bad/scratch", "bad/dent", "--masks", "bad/masks", "--mask_suffix", "_m"]
    rows, warnings = generate("custom", tmp_path, *options)
    assert [row[3:] for row in rows] == [
        ("bad/dent/1.JPG", 1, "bad/masks/dent/1_m.png"),
        ("bad/dent/2.JPG", 1, "bad/masks/2_m.tif"),
        ("bad/scratch/1.JPG", 1, "bad/masks/scratch/1_m.png"),
    ]
    assert len(warnings) == 1
    assert "1 files in" in warnings[0]
    assert "bad/masks/dent/1.png" in warnings[0]


def test_custom_mask_folder_inside_the_image_folder(tmp_path):
    tree(tmp_path, "bad/1.jpg", "bad/masks/1.png")
    rows, _ = generate("custom", tmp_path, "--abnormal", "bad", "--masks", "bad/masks")
    assert [row[3:] for row in rows] == [("bad/1.jpg", 1, "bad/masks/1.png")]


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        (["--normal", "nothing/*.jpg"], "--normal nothing/*.jpg: finds no images"),
        (["--normal", "../x"], "has to lie inside --root"),
        (["--abnormal", "/x"], "has to lie inside --root"),
        (["--normal", "MT_Free", "--abnormal", "MT_*/Imgs/*.jpg"], "a 1.jpg: found by --normal and by --abnormal"),
        (["--abnormal", "MT_Break/Imgs/*.jpg", "--mask_suffix", "_m.png"], "b.jpg: this abnormal image has no mask"),
        (["--abnormal", "MT_B*/Imgs/*.jpg", "--masks", "MT_Break/Imgs/*.png"], "b.png: fits MT_Blowhole/Imgs/b.jpg"),
        (["--abnormal", "x/b.bmp", "--masks", "."], "b.bmp: has several masks"),
    ],
)
def test_custom_refuses(tmp_path, options, needle):
    tree(tmp_path, *TILES, "x/b.bmp")
    refused("custom", tmp_path, needle, options=options)


def test_custom_needs_images(tmp_path):
    tree(tmp_path, *TILES)
    code, _, errors = run("custom", tmp_path)
    assert code == 2
    assert errors.startswith("error: give --normal, --abnormal or both") and len(errors.splitlines()) == 1
    assert "python predict.py FOLDER" in errors


def test_custom_with_mvtecs_layout_and_other_classes(tmp_path):
    tree(tmp_path, "clock/test/good/0.png", "clock/test/bent/0.png", "clock/ground_truth/bent/0_mask.png")
    rows, warnings = generate("custom", tmp_path, "--mvtec_layout")
    assert [row[3:] for row in rows] == [
        ("clock/test/bent/0.png", 1, "clock/ground_truth/bent/0_mask.png"),
        ("clock/test/good/0.png", 0, ""),
    ]
    assert warnings == []
    (tmp_path / "meta.json").unlink()
    refused("custom", tmp_path, "--mvtec_layout alone", options=["--mvtec_layout", "--normal", "clock"])


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["--normal", "clock"], "--normal"),
        (["--abnormal", "clock"], "--abnormal"),
        (["--masks", "clock"], "--masks"),
        (["--class_name", "object"], "--class_name"),
        (["--class_from_folder"], "--class_from_folder"),
        (["--split", "test"], "--split"),
        (["--split", "train", "--masks", "nowhere"], "--masks, --split"),
    ],
)
def test_custom_flags_that_mvtecs_layout_has_no_use_for(tmp_path, options, flags):
    tree(tmp_path, "clock/test/good/0.png")
    line = f"error: {flags}: the folders say that already; give --mvtec_layout alone"
    refused("custom", tmp_path, line, options=["--mvtec_layout", *options])


@pytest.mark.parametrize(
    ("suffix", "mask"),
    [(None, "0.png"), (None, "0_mask.bmp"), ("_m", "0_m.bmp"), (".png", "0.png"), ("_mask.png", "0_mask.png")],
)
def test_custom_mvtec_layout_and_the_names_of_masks(tmp_path, suffix, mask):
    tree(tmp_path, "a/test/bad/0.png", f"a/ground_truth/bad/{mask}")
    if suffix and suffix.endswith(".png"):
        tree(tmp_path, "a/ground_truth/bad/0_mask.bmp", "a/ground_truth/bad/0.bmp")
    options = ["--mask_suffix", suffix] if suffix else []
    rows, _ = generate("custom", tmp_path, "--mvtec_layout", *options)
    assert rows == [("test", "a", "bad", "a/test/bad/0.png", 1, f"a/ground_truth/bad/{mask}")]
    (tmp_path / "meta.json").unlink()
    needles = ("a/test/bad/0.png: this abnormal image has no mask", "0_other.*")
    refused("custom", tmp_path, *needles, options=["--mvtec_layout", "--mask_suffix", "_other.png"])


def test_custom_mvtec_layout_with_two_masks_for_an_image(tmp_path):
    tree(tmp_path, "a/test/bad/0.png", "a/ground_truth/bad/0.png", "a/ground_truth/bad/0_mask.png")
    refused("custom", tmp_path, "has several masks", options=["--mvtec_layout"])


def test_custom_mvtec_layout_without_masks(tmp_path):
    tree(tmp_path, "a/train/good/1.png", "a/test/good/1.png", "a/test/bad/1.png", "b/test/good/1.png")
    code, output, errors = run("custom", tmp_path, "--mvtec_layout")
    assert (code, errors) == (0, "")
    assert output == (
        f"{tmp_path}: no class has a ground_truth folder; taken without masks\n"
        f"wrote {tmp_path}/meta.json\n"
        "train: 1 classes, 1 normal, 0 anomalous, 0 masks\n"
        "test: 2 classes, 2 normal, 1 anomalous, 0 masks\n"
    )
    assert generate("custom", tmp_path, "--mvtec_layout")[0] == [
        ("train", "a", "good", "a/train/good/1.png", 0, ""),
        ("test", "a", "bad", "a/test/bad/1.png", 1, ""),
        ("test", "a", "good", "a/test/good/1.png", 0, ""),
        ("test", "b", "good", "b/test/good/1.png", 0, ""),
    ]


def test_custom_mvtec_layout_with_masks_of_some_classes(tmp_path):
    tree(tmp_path, "a/test/bad/1.png", "b/test/bad/1.png", "b/ground_truth/bad/1.png", "c/test/good/1.png")
    needles = ("class a has no ground_truth folder, class b has one",)
    refused("custom", tmp_path, *needles, options=["--mvtec_layout"])
    tree(tmp_path, "a/ground_truth/other/1.png")
    refused("custom", tmp_path, "has no folder a/ground_truth/bad", options=["--mvtec_layout"])


def test_custom_masks_in_a_folder_of_each_class(tmp_path):
    tree(tmp_path, *VISA_1CLS, *(path.replace("candle", "pcb1") for path in VISA_1CLS))
    options = ["--abnormal", "*/test/bad", "--masks", "*/ground_truth/bad", "--class_from_folder"]
    assert [row[3:] for row in generate("custom", tmp_path, *options)[0]] == [
        (f"{name}/test/bad/000.JPG", 1, f"{name}/ground_truth/bad/000.png") for name in ("candle", "pcb1")
    ]


# What a look into the pictures tells


def written(root, *options):
    """The meta.json that custom.py writes, its stdout and its warnings."""
    code, output, errors = run("custom", root, *options)
    assert code == 0, errors
    return json.loads((root / "meta.json").read_text()), output, errors.splitlines()


def range_of(*arrays):
    """The range for pictures of these values."""
    return choose_range(join_values(values_in(np.asarray(array)) for array in arrays))


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(3, 255), (255, 255), (256, 1023), (1023, 1023), (4000, 4095), (4096, 16383), (16384, 65535), (65535, 65535)],
)
def test_the_smallest_usual_range_of_integers(highest, expected):
    assert range_of(np.array([0, highest], np.uint16)) == (0, expected)
    assert range_of(np.array([0, 1], np.int32), np.array([5, highest], np.int32)) == (0, expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2], (0, 1)),
        ([0.0, 1.0], (0, 1)),
        ([0.0, 200.0], (0, 255)),
        ([0.0, 3000.5], (0, 4095)),
        ([-0.9, 0.9], (-1, 1)),
        ([-1000.0, 2000.0], (-1024, 3071)),
        ([0.0, 8.0], (0.0, 8.0)),  # of 0 to 255 nothing but black would be left
        ([-3.0, 3.0], (-3.0, 3.0)),
        ([-0.25, 0.25], (-0.25, 0.25)),
        ([float("nan"), 0.5, float("inf")], (0, 1)),
        ([0.0, 1e6], (0.0, 1e6)),
        ([-5.0, -5.0], (-5.0, -4.0)),
    ],
)
def test_the_range_of_floating_point_numbers(values, expected):
    assert range_of(np.array(values, np.float32)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1024, 3071], (-1024, 3071)),
        ([-1000, 100], (-1024, 3071)),
        ([-200, 300], (-200, 300)),
        ([-2000, 3000], (-2000, 3000)),
        ([0, 70000], (0, 70000)),
    ],
)
def test_the_range_of_signed_and_of_large_integers(values, expected):
    assert range_of(np.array(values, np.int32)) == expected


def test_two_per_cent_of_a_picture_may_lie_outside():
    few, many = np.full(100, 1000), np.full(100, 1000)
    few[:2], many[:3] = 60000, 60000
    assert range_of(few) == (0, 1023)
    assert range_of(many) == (0, 65535)
    assert range_of(*[few] * 200, many) == (0, 65535)  # a picture is not lost because it is the only one of its kind
    assert values_in(np.array([np.nan], np.float32)) is None


def test_value_range_auto(tmp_path):
    (tmp_path / "good").mkdir()
    for n, highest in enumerate((900, 4095)):
        Image.fromarray(np.array([[0, highest]], np.uint16)).save(tmp_path / f"good/{n}.png")
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "good/8 bits.png")
    (tmp_path / "good/broken.png").write_bytes(b"\x89PNG")
    meta, output, warnings = written(tmp_path, "--normal", "good", "--value_range", "auto")
    assert list(meta) == ["train", "test", "value_range"]
    assert meta["value_range"] == [0, 4095]
    assert len(rows_of(meta)) == 4
    assert "value_range: 0 to 4095 for the values of 2 images of more than 8 bits, from 0 to 4095\n" in output
    assert warnings == []


def test_value_range_auto_of_floats(tmp_path):
    Image.fromarray(np.array([[0, 0.25, 8.5]], np.float32)).save(tmp_path / "1.tif")
    assert written(tmp_path, "--normal", ".", "--value_range", "auto")[0]["value_range"] == [0, 8.5]


def test_value_range_auto_without_deep_images(tmp_path):
    picture(tmp_path / "a.png")
    meta, output, _ = written(tmp_path, "--normal", "a.png", "--value_range", "auto")
    assert list(meta) == ["train", "test"]
    assert "--value_range auto: no image has more than 8 bits; no value_range was written\n" in output


def test_value_range_as_given(tmp_path):
    tree(tmp_path, "a.png")
    for words, expected in ((("-1024", "3071"), [-1024, 3071]), (("0", "0.5"), [0, 0.5])):
        meta, _, _ = written(tmp_path, "--normal", "a.png", "--value_range", *words)
        assert meta["value_range"] == expected
    (tmp_path / "meta.json").unlink()
    for words in (("1",), ("5", "1"), ("0", "nan"), ("0", "inf"), ("auto", "1"), ("0", "1", "2"), ("3", "3")):
        line = f"error: --value_range {' '.join(words)}: neither auto nor LOW HIGH"
        refused("custom", tmp_path, line, options=["--normal", "a.png", "--value_range", *words])


OPTIONS = ("--abnormal", "bad", "--masks", "masks")


def with_masks(root, **masks):
    """Images in bad/ and their masks, arrays or pictures, in masks/."""
    (root / "masks").mkdir(exist_ok=True)
    for name, mask in masks.items():
        picture(root / "bad" / f"{name}.jpg")
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(root / "masks" / f"{name}.png")


def square(value=255, size=30):
    """A mask with a square."""
    mask = np.zeros((96, 96), np.uint8)
    mask[:size, :size] = value
    return mask


def specks(seed, value=9, density=0.02):
    """A mask with single pixels here and there."""
    return (np.random.default_rng(seed).random((96, 96)) < density).astype(np.uint8) * np.uint8(value)


def test_masks_that_look_right(tmp_path):
    with_masks(tmp_path, a=square(), b=square(1), c=square(size=80), d=np.maximum(square(), specks(0, density=0.001)))
    meta, _, warnings = written(tmp_path, *OPTIONS)
    assert list(meta) == ["train", "test"]
    assert warnings == []
    assert [row[5] for row in rows_of(meta)] == [f"masks/{name}.png" for name in "abcd"]


def test_mask_threshold(tmp_path):
    with_masks(tmp_path, a=square(), b=square(100), c=square(0))
    meta, _, warnings = written(tmp_path, *OPTIONS, "--mask_threshold", "127")
    assert list(meta) == ["train", "test", "mask_threshold"]
    assert meta["mask_threshold"] == 127
    assert [row[4] for row in rows_of(meta)] == [1, 1, 0]
    assert warnings == [
        "warning: 1 of 3 masks are all black (first: masks/c.png); their images are taken as normal",
        "warning: 1 of 3 masks (first: masks/b.png) mark nothing, no value is above 127; give a lower "
        "--mask_threshold, or correct them",
    ]
    assert written(tmp_path, *OPTIONS, "--mask_threshold", "0.5")[0]["mask_threshold"] == 0.5
    assert list(written(tmp_path, *OPTIONS, "--mask_threshold", "0")[0]) == ["train", "test"]


def test_mask_threshold_needs_masks(tmp_path):
    tree(tmp_path, "a.png")
    options = ["--abnormal", "a.png", "--mask_threshold"]
    refused("custom", tmp_path, "--mask_threshold: there are no masks", options=[*options, "9"])
    code, _, errors = run("custom", tmp_path, *options, "-1")
    assert code == 2
    assert "argument --mask_threshold: -1.0 is not between 0" in errors


def test_black_masks_in_mvtecs_layout_change_no_label(tmp_path):
    picture(tmp_path / "a/test/bad/0.png")
    picture(tmp_path / "a/ground_truth/bad/0.png")
    meta, _, warnings = written(tmp_path, "--mvtec_layout")
    assert rows_of(meta) == [("test", "a", "bad", "a/test/bad/0.png", 1, "a/ground_truth/bad/0.png")]
    line = "warning: 1 of 1 masks are all black (first: a/ground_truth/bad/0.png); "
    assert warnings == [line + "correct them, or move their images to good/"]


def test_masks_that_cover_most_of_the_picture(tmp_path):
    with_masks(tmp_path, a=square(), b=255 - square(), c=255 - square())
    line = "warning: 2 of 3 masks (first: masks/b.png) mark more than half of the picture; "
    assert written(tmp_path, *OPTIONS)[2] == [line + "if they mark what is normal, invert them"]
    with_masks(tmp_path, d=square())
    assert written(tmp_path, *OPTIONS)[2] == []


def test_masks_with_the_noise_of_jpeg(tmp_path):
    with_masks(tmp_path, a=square(), b=np.maximum(square(), specks(0)), c=np.maximum(square(), specks(1)))
    line = "warning: 2 of 3 masks (first: masks/b.png) hold more than 20 regions, most of fewer than 10 pixels, "
    assert written(tmp_path, *OPTIONS)[2] == [line + "like the noise of JPEG; give --mask_threshold 127"]
    assert written(tmp_path, *OPTIONS, "--mask_threshold", "127")[2] == []
    with_masks(tmp_path, b=specks(0, value=255), c=specks(1, value=255))
    assert written(tmp_path, *OPTIONS)[2] == [line + "like the noise of JPEG; clean them"]


def test_when_a_mask_is_noisy():
    grid = np.zeros((50, 60), bool)
    grid[::5, ::15] = True  # 40 regions
    assert is_noisy(grid)
    assert not is_noisy(grid[:, :30])  # 20 regions
    assert not is_noisy(np.kron(grid, np.ones((4, 4))) > 0)  # of 16 pixels each
    assert not is_noisy(np.zeros((5, 5), bool))


def test_masks_with_transparency(tmp_path):
    mask = Image.new("RGBA", (96, 96), (255, 255, 255, 255))
    mask.paste((255, 255, 255, 0), (0, 0, 96, 60))
    with_masks(tmp_path, a=square(), b=mask, c=Image.fromarray(square()).convert("RGBA"))
    line = "warning: 1 of 3 masks (first: masks/b.png) hold transparency; what is transparent is taken as normal, "
    assert written(tmp_path, *OPTIONS)[2] == [line + "save them without if that is wrong"]


def test_masks_that_cannot_be_read_are_left_to_those_who_use_them(tmp_path):
    with_masks(tmp_path, a=square())
    picture(tmp_path / "bad/b.jpg")
    (tmp_path / "masks/b.png").write_bytes(b"\x89PNG and nothing")
    meta, _, warnings = written(tmp_path, *OPTIONS)
    assert [row[4] for row in rows_of(meta)] == [1, 1]
    assert warnings == []
