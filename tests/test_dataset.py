"""dataset.py: what AnomalyDataset returns, what it accepts as meta.json, and what it says about bad input."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from dataset import AnomalyDataset, ImageError, load_image, load_mask
from utils import InputError

SIZE = 16


def preprocess(image):
    assert image.mode == "RGB"
    pixels = np.asarray(image.resize((SIZE, SIZE)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def entry(image, mask="", anomaly=0, name="bottle"):
    return {"img_path": image, "mask_path": mask, "cls_name": name, "specie_name": "x", "anomaly": anomaly}


def save(path, value=120, size=(20, 10), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def save_mask(path, size=(20, 10), box=(0, 0, 10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)


def write_meta(root, meta):
    (root / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """Two classes, three test images, one training image; the left half of the anomalous image is masked."""
    folder = tmp_path / "data"
    for name in ("bottle/good.png", "bottle/bad.png", "cable/good one é.png", "bottle/train.png"):
        save(folder / name)
    save_mask(folder / "bottle/bad_mask.png")
    write_meta(folder, {
        "train": {"bottle": [entry("bottle/train.png")]},
        "test": {
            "bottle": [entry("bottle/bad.png", "bottle/bad_mask.png", 1), entry("bottle/good.png")],
            "cable": [entry("cable/good one é.png", name="cable")],
        },
    })  # fmt: skip
    return folder


def load(root, **options):
    return AnomalyDataset(root, preprocess, image_size=SIZE, **options)


def refused(root, *needles, **options):
    """Construction fails with one line that holds all needles and says what to do."""
    with pytest.raises(InputError) as caught:
        load(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for needle in (*needles, ";"):
        assert needle in message, message


def test_items(root):
    dataset = load(root)
    assert len(dataset) == 3
    bad, good, cable = (dataset[i] for i in range(3))
    assert list(bad) == ["image", "mask", "label", "class_name", "image_path"]
    assert bad["image"].shape == (3, SIZE, SIZE)
    assert bad["mask"].shape == (SIZE, SIZE)
    assert bad["mask"].dtype == torch.float32
    expected = torch.zeros(SIZE, SIZE)
    expected[:, : SIZE // 2] = 1
    assert torch.equal(bad["mask"], expected)
    assert (bad["label"], good["label"], cable["label"]) == (1, 0, 0)
    assert (bad["class_name"], cable["class_name"]) == ("bottle", "cable")
    assert not good["mask"].any()
    assert cable["image_path"] == str(root / "cable" / "good one é.png")
    assert torch.allclose(good["image"], torch.full((3, SIZE, SIZE), 120 / 255))


def test_attributes(root):
    dataset = load(root)
    assert dataset.classes == ["bottle", "cable"]
    assert [e.image_path for e in dataset.entries] == ["bottle/bad.png", "bottle/good.png", "cable/good one é.png"]
    assert dataset.has_masks
    assert dataset.warnings == []
    train = load(root, split="train")
    assert (len(train), train.has_masks) == (1, False)


def test_relative_root_gives_absolute_paths(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert load("data")[0]["image_path"] == str(root / "bottle" / "bad.png")


def test_checksum_follows_entries_and_sizes_but_not_the_place(root, tmp_path):
    checksum = load(root).checksum
    assert re.fullmatch("[0-9a-f]{64}", checksum)
    shutil.copytree(root, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").checksum == checksum
    with (root / "bottle/good.png").open("ab") as file:
        file.write(b"more")
    assert load(root).checksum != checksum
    (root / "bottle/train.png").write_bytes(b"another split")
    assert load(tmp_path / "elsewhere").checksum == checksum


def test_set_without_masks(root):
    write_meta(root, {"test": {"brain": [entry("bottle/bad.png", "", 1), entry("bottle/good.png", None, 0)]}})
    dataset = load(root)
    assert not dataset.has_masks
    assert not dataset[0]["mask"].any()
    assert dataset[0]["label"] == 1


def test_mask_of_a_normal_image_is_not_used(root):
    write_meta(root, {"test": {"bottle": [entry("bottle/good.png", "bottle/bad_mask.png", 0)]}})
    dataset = load(root)
    assert not dataset.has_masks
    assert not dataset[0]["mask"].any()


def test_masks_for_some_anomalous_images_only_are_refused(root):
    rows = [entry("bottle/bad.png", "bottle/bad_mask.png", 1), entry("bottle/good.png", "", 1)]
    write_meta(root, {"test": {"bottle": rows}})
    refused(root, "1 of 2", "bottle/good.png", "no mask")


def test_mask_of_another_size_is_stretched_and_reported(root):
    save_mask(root / "bottle/bad_mask.png", size=(40, 40), box=(0, 0, 20, 40))
    dataset = load(root)
    assert len(dataset.warnings) == 1
    assert "1 masks" in dataset.warnings[0]
    assert "bottle/bad_mask.png" in dataset.warnings[0]
    assert dataset[0]["mask"][:, : SIZE // 2].all()
    assert not dataset[0]["mask"][:, SIZE // 2 :].any()


def test_mask_of_the_size_of_the_upright_image_is_not_reported(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (10, 20)).save(root / "bottle/sideways.jpg", exif=exif)
    write_meta(root, {"test": {"bottle": [entry("bottle/sideways.jpg", "bottle/bad_mask.png", 1)]}})
    assert load(root).warnings == []


# meta.json as the released scripts write it


def entries_of(root, rows):
    write_meta(root, {"test": {"bottle": rows}})
    return [(e.image_path, e.mask_path, e.label) for e in load(root).entries]


@pytest.mark.parametrize("start", ["/remote-home/someone/data/SDD/", "C:\\data\\SDD\\", "\\\\server\\share\\", "//a/"])
def test_absolute_paths_of_another_machine(root, start):
    rows = [entry(start + "bottle/bad.png", start + "bottle/bad_mask.png", 1)]
    assert entries_of(root, rows) == [("bottle/bad.png", "bottle/bad_mask.png", 1)]
    assert load(root)[0]["mask"].any()


def test_paths_that_hold_the_root(root):
    rows = [entry("data/bottle/bad.png", str(root / "bottle/bad_mask.png"), 1), entry("x/data/bottle/good.png")]
    assert entries_of(root, rows) == [("bottle/bad.png", "bottle/bad_mask.png", 1), ("bottle/good.png", "", 0)]


def test_backslashes_booleans_and_missing_optional_keys(root):
    rows = [
        entry("bottle\\bad.png", "bottle\\bad_mask.png", True),
        {"img_path": "./bottle/good.png", "cls_name": "bottle", "anomaly": False},
    ]
    assert entries_of(root, rows) == [("bottle/bad.png", "bottle/bad_mask.png", 1), ("bottle/good.png", "", 0)]


def test_capital_split_names_and_byte_order_mark(root):
    rows = {"Train": "bottle/train.png", "Test": "bottle/good.png"}
    write_meta(root, "\ufeff" + json.dumps({split: {"bottle": [entry(image)]} for split, image in rows.items()}))
    assert load(root).entries[0].image_path == "bottle/good.png"
    assert load(root, split="train").entries[0].image_path == "bottle/train.png"


def test_link_inside_the_root_may_lead_out(root, tmp_path):
    save(tmp_path / "outside/a.png")
    (root / "linked").symlink_to(tmp_path / "outside")
    assert entries_of(root, [entry("linked/a.png")]) == [("linked/a.png", "", 0)]


# Bad data sets


def test_root_is_missing_or_empty_or_a_file(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "No such file")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "file", "Not a directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty", f"python generate_dataset_json/KEY.py --root {tmp_path / 'empty'}")


def test_no_meta_json(root):
    (root / "meta.json").unlink()
    refused(root, "meta.json", f"python generate_dataset_json/KEY.py --root {root}")


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100000, '{"test": NaN,}'])
def test_meta_json_is_not_json(root, text):
    write_meta(root, text)
    refused(root, "meta.json", "not valid JSON", "generate_dataset_json")


def test_meta_json_is_not_utf8(root):
    (root / "meta.json").write_bytes(b'{"test": "\xff\xfe"}')
    refused(root, "meta.json", "not valid JSON")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"test"'])
def test_meta_json_is_not_an_object(root, text):
    write_meta(root, text)
    refused(root, "meta.json", "instead of an object")


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ({}, "no 'test' split"),
        ({"train": {"bottle": []}}, "['train']"),
        ({"test": []}, "list of entries for each class"),
        ({"test": {"bottle": {}}}, "list of entries for each class"),
        ({"test": {"bottle": ["a"]}}, "is not an object"),
        ({"test": {"bottle": []}}, "no images"),
        ({"test": {}}, "no images"),
        ({"test": {"a\nb": ["a"]}}, "is not an object"),
    ],
)
def test_meta_json_of_another_shape(root, content, needle):
    write_meta(root, content)
    refused(root, str(root), needle)


@pytest.mark.parametrize("key", ["img_path", "cls_name", "anomaly"])
def test_entry_lacks_a_key(root, key):
    row = entry("bottle/good.png")
    del row[key]
    write_meta(root, {"test": {"bottle": [entry("bottle/good.png"), row]}})
    refused(root, "meta.json", "entry 1", "bottle", f"lacks '{key}'")


@pytest.mark.parametrize(
    ("key", "value"),
    [("img_path", 3), ("img_path", None), ("mask_path", ["a"]), ("cls_name", 1), ("anomaly", "1"), ("anomaly", 2),
     ("anomaly", 1.0), ("anomaly", None)],
)  # fmt: skip
def test_entry_has_a_wrong_value(root, key, value):
    write_meta(root, {"test": {"bottle": [entry("bottle/good.png") | {key: value}]}})
    refused(root, "meta.json", "entry 0", repr(value), repr(key))


@pytest.mark.parametrize("path", ["bottle/none.png", "", ".", "bottle", "none/bottle/good.png", "a" * 5000, "\ud800"])
def test_image_does_not_exist(root, path):
    write_meta(root, {"test": {"bottle": [entry(path)]}})
    refused(root, "meta.json", "entry 0", repr(path), "does not exist")


def test_mask_does_not_exist(root):
    write_meta(root, {"test": {"bottle": [entry("bottle/bad.png", "bottle/none.png", 1)]}})
    refused(root, "meta.json", "mask 'bottle/none.png'", "does not exist")


@pytest.mark.parametrize(
    "path", ["{outside}", "../outside.png", "bottle/../../outside.png", "..\\outside.png", "c:{outside}", "bad\n.png",
             "bottle/good.png\x00", "/etc/passwd"]
)  # fmt: skip
@pytest.mark.parametrize("key", ["img_path", "mask_path"])
def test_path_outside_the_root(root, tmp_path, path, key):
    save(tmp_path / "outside.png")
    path = path.format(outside=tmp_path / "outside.png")
    write_meta(root, {"test": {"bottle": [entry("bottle/bad.png", "bottle/bad_mask.png", 1) | {key: path}]}})
    refused(root, "meta.json", repr(path), "outside the root")


# Images


def pixel(path):
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("L", 100, "a.png", (100, 100, 100)),
        ("1", 1, "a.png", (255, 255, 255)),
        ("RGB", (1, 2, 3), "a.png", (1, 2, 3)),
        ("RGBA", (200, 0, 100, 255), "a.png", (200, 0, 100)),
        ("RGBA", (200, 0, 100, 0), "a.png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), "a.png", (204, 204, 204)),
        ("LA", (0, 51), "a.png", (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        ("I;16", 65535, "a.png", (255, 255, 255)),
        ("I;16", 100 * 257, "a.png", (100, 100, 100)),
        ("I;16B", 100 * 257, "a.tif", (100, 100, 100)),
        ("I", 100 * 257, "a.tif", (100, 100, 100)),
        ("F", 0.2, "a.tif", (51, 51, 51)),
        ("F", 100.0, "a.tif", (100, 100, 100)),
        ("F", 25700.0, "a.tif", (100, 100, 100)),
    ],
)
def test_modes_become_rgb(tmp_path, mode, colour, name, expected):
    Image.new(mode, (4, 4), colour).save(tmp_path / name)
    assert pixel(tmp_path / name) == expected


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixel(tmp_path / "opaque.png") == (10, 20, 30)
    assert pixel(tmp_path / "clear.png") == (255, 255, 255)


def test_deep_values_beyond_the_usual_ranges(tmp_path):
    values = np.array([[-1000, 0], [0, 99000]], dtype=np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.asarray(load_image(tmp_path / "a.tif"))[..., 0].tolist() == [[0, 3], [3, 255]]
    Image.fromarray(np.array([[np.nan, np.inf, 1.0]], dtype=np.float32)).save(tmp_path / "b.tif")
    assert np.asarray(load_image(tmp_path / "b.tif"))[..., 0].tolist() == [[0, 0, 255]]


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the white left half becomes the top
    image.save(tmp_path / "a.jpg", exif=exif)
    shown = np.asarray(load_image(tmp_path / "a.jpg").convert("L"))
    assert shown.shape == (32, 16)
    assert shown[:15].min() > 200
    assert shown[17:].max() < 50


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_matter(tmp_path):
    Image.new("L", (4, 4), 100).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00garbage")
    Image.new("L", (4, 4), 100).save(tmp_path / "b.jpg", exif=b"Exif\x00\x00nothing")
    assert pixel(tmp_path / "a.jpg") == pixel(tmp_path / "b.jpg") == (100, 100, 100)


def break_file(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not an image")
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("how", ["missing", "empty", "text", "truncated"])
@pytest.mark.parametrize("name", ["bottle/bad.png", "bottle/bad_mask.png"])
def test_unreadable_file(root, how, name):
    dataset = load(root)
    break_file(root / name, how)
    with pytest.raises(InputError) as caught:
        dataset[0]
    assert str(caught.value).startswith(f"{root / name}: cannot be read as an image (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [150, 50])  # PIL warns above the limit, and refuses above twice the limit
def test_enormous_image(root, limit, monkeypatch):
    dataset = load(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=rf"good\.png: has more than {limit} pixels; [^\n]*$"):
        dataset[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_file_reaches_the_main_process_in_one_line(root, workers):
    dataset = load(root)
    break_file(root / "bottle/good.png", "text")
    with pytest.raises(ImageError) as caught:
        list(DataLoader(dataset, batch_size=1, num_workers=workers))
    assert re.fullmatch(rf"{root}/bottle/good\.png: cannot be read as an image \([^\n]*\); [^\n]*", str(caught.value))


def test_batches_from_workers(root):
    (batch,) = DataLoader(load(root), batch_size=3, num_workers=2)
    assert batch["image"].shape == (3, 3, SIZE, SIZE)
    assert batch["mask"].shape == (3, SIZE, SIZE)
    assert batch["label"].tolist() == [1, 0, 0]
    assert batch["class_name"] == ["bottle", "bottle", "cable"]


def test_preprocess_of_another_size_is_refused(root):
    with pytest.raises(InputError, match=r"\(3, 16, 16\).*image_size"):
        AnomalyDataset(root, preprocess, image_size=32)[0]


# Masks


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("L", (700, 900)), ("L", (1100, 30)), ("RGB", (512, 512)), ("1", (518, 518)), ("P", (100, 37))],
)
def test_mask_transform_is_the_released_one(tmp_path, mode, shape):
    rng = np.random.default_rng(shape[0])
    blocks = rng.integers(0, 3, (13, 11)).astype(np.uint8) * 100
    image = Image.fromarray(blocks).resize(shape[::-1], Image.Resampling.BICUBIC)
    image.convert(mode).save(tmp_path / "mask.png")
    binary = np.array(Image.open(tmp_path / "mask.png").convert("L")) > 0
    binary = Image.fromarray(binary.astype(np.uint8) * 255)
    resize = transforms.Compose([transforms.Resize((518, 518)), transforms.CenterCrop(518), transforms.ToTensor()])
    expected = resize(binary)
    expected[expected > 0.5], expected[expected <= 0.5] = 1, 0
    mask = load_mask(tmp_path / "mask.png", 518)
    assert mask.dtype == np.float32
    assert 0 < mask.mean() < 1
    assert np.array_equal(mask, expected[0].numpy())


def test_deep_mask_counts_every_value_above_zero(tmp_path):
    values = np.zeros((8, 8), dtype=np.uint16)
    values[:4] = 1
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert np.array_equal(load_mask(tmp_path / "mask.png", 8), (values > 0).astype(np.float32))
