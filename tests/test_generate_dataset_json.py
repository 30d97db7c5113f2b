"""generate_dataset_json/: each script run on a small fake tree of its layout, against entries written out by hand."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from generate_dataset_json.builder import DATASETS

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
    rows = []
    for split, classes in meta.items():
        for name, entries in classes.items():
            for item in entries:
                assert list(item) == ["img_path", "mask_path", "cls_name", "specie_name", "anomaly"]
                assert item["cls_name"] == name
                rows.append((split, name, item["specie_name"], item["img_path"], item["anomaly"], item["mask_path"]))
    return rows, errors.splitlines()


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


def test_scripts_need_neither_torch_nor_numpy(tmp_path):
    tree(tmp_path, "no/1.jpg", "yes/1.jpg")
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'numpy', 'PIL']));"
        f"sys.path.insert(0, {str(SCRIPTS)!r}); sys.argv = ['br35h.py', '--root', {str(tmp_path)!r}];"
        f"runpy.run_path({str(SCRIPTS / 'br35h.py')!r}, run_name='__main__')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_every_data_set_has_a_script_with_help():
    names = {path.stem for path in SCRIPTS.glob("*.py")}
    assert names == {*DATASETS, "colondb_train", "custom", "builder"}
    for key in (*DATASETS, "colondb_train", "custom"):
        code, output, _ = run(key, ".", "--help")
        assert code == 0
        assert "--root" in output
        assert "--out" in output


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
    assert "give --normal, --abnormal or both" in errors


def test_custom_with_mvtecs_layout_and_other_classes(tmp_path):
    tree(tmp_path, "clock/test/good/0.png", "clock/test/bent/0.png", "clock/ground_truth/bent/0_mask.png")
    rows, warnings = generate("custom", tmp_path, "--mvtec_layout")
    assert [row[3:] for row in rows] == [
        ("clock/test/bent/0.png", 1, "clock/ground_truth/bent/0_mask.png"),
        ("clock/test/good/0.png", 0, ""),
    ]
    assert warnings == []
    code, _, errors = run("custom", tmp_path, "--mvtec_layout", "--normal", "clock")
    assert code == 2
    assert "--mvtec_layout alone" in errors
