"""dataset.py: what AnomalyDataset returns, what it accepts as meta.json, and what it says about bad input."""

import json
import os
import re
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset import AnomalyDataset, ImageError, JoinedDataset, mask_warnings, open_data
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
        ({"test": []}, "list of entries a class"),
        ({"test": {"bottle": {}}}, "list of entries a class"),
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


@pytest.mark.parametrize("path", ["bottle/none.png", "none/bottle/good.png", "a" * 5000])
def test_image_does_not_exist(root, path):
    write_meta(root, {"test": {"bottle": [entry(path)]}})
    refused(root, "meta.json", "entry 0", repr(path), "does not exist")


@pytest.mark.parametrize("path", ["", ".", "bottle", "pipe"])
def test_image_is_not_a_file(root, path):
    os.mkfifo(root / "pipe")
    write_meta(root, {"test": {"bottle": [entry(path)]}})
    refused(root, "meta.json", "entry 0", repr(path), "is not a file")


@pytest.mark.parametrize("path", ["\ud800", "bad\n.png", "bottle/good.png\x00", "bottle/good\udcff.png"])
@pytest.mark.parametrize("key", ["img_path", "mask_path"])
def test_path_with_signs_that_cannot_be_printed(root, path, key):
    write_meta(root, {"test": {"bottle": [entry("bottle/bad.png", "bottle/bad_mask.png", 1) | {key: path}]}})
    refused(root, "meta.json", repr(path), "characters that no path should hold")


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "\x1b[31m"])
def test_class_name_that_cannot_be_printed(root, name):
    write_meta(root, {"test": {"bottle": [entry("bottle/good.png", name=name)]}})
    refused(root, "meta.json", repr(name), "cannot be printed")


def test_image_with_two_labels(root):
    rows = [entry("bottle/good.png"), entry("bottle/../bottle/good.png", anomaly=1)]
    write_meta(root, {"test": {"bottle": rows}})
    refused(root, "meta.json", "entry 1", "both 0 and 1")


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_letters_with_accents_are_one_sign_or_two(root, stored, written):
    save(root / unicodedata.normalize(stored, "bottle/gültig.png"))
    rows = [entry(unicodedata.normalize(written, "bottle/gültig.png"))]
    assert entries_of(root, rows) == [(unicodedata.normalize(stored, "bottle/gültig.png"), "", 0)]


def test_mask_does_not_exist(root):
    write_meta(root, {"test": {"bottle": [entry("bottle/bad.png", "bottle/none.png", 1)]}})
    refused(root, "meta.json", "mask 'bottle/none.png'", "does not exist")


@pytest.mark.parametrize(
    "path", ["{outside}", "../outside.png", "bottle/../../outside.png", "..\\outside.png", "c:{outside}", "/etc/passwd"]
)  # fmt: skip
@pytest.mark.parametrize("key", ["img_path", "mask_path"])
def test_path_outside_the_root(root, tmp_path, path, key):
    save(tmp_path / "outside.png")
    path = path.format(outside=tmp_path / "outside.png")
    write_meta(root, {"test": {"bottle": [entry("bottle/bad.png", "bottle/bad_mask.png", 1) | {key: path}]}})
    refused(root, "meta.json", repr(path), "outside the root")


# How a data set is read


def with_rules(root, **rules):
    content = json.loads((root / "meta.json").read_text(encoding="utf-8"))
    write_meta(root, content | rules)
    return load(root)


def test_value_range_holds_for_all_images(root):
    before = load(root).checksum
    deep = np.array([[0, 1000, 2000, 3000]], dtype=np.uint16)
    Image.fromarray(deep).save(root / "bottle/good.png")
    assert "value_range" in load(root).warnings[0]
    dataset = with_rules(root, value_range=[1000, 3000])
    assert dataset.warnings == [] and dataset.value_range == (1000, 3000)
    assert np.asarray(dataset.image(1))[0, :, 0].tolist() == [0, 0, 128, 255]
    assert dataset.checksum != before


def test_mask_threshold_holds_for_all_masks(root):
    before = load(root).checksum
    Image.fromarray(np.array([[0, 5, 127, 128]] * 4, dtype=np.uint8)).save(root / "bottle/bad_mask.png")
    assert load(root).mask(0, (4, 4))[0].tolist() == [0, 1, 1, 1]
    dataset = with_rules(root, mask_threshold=127)
    assert dataset.mask(0, (4, 4))[0].tolist() == [0, 0, 0, 1]
    assert dataset.checksum != before and with_rules(root, mask_threshold=0).classes == ["bottle", "cable"]


def test_usual_rules_leave_the_checksum(root):
    before = load(root).checksum
    assert with_rules(root, mask_threshold=0, value_range=None).checksum == before


@pytest.mark.parametrize("value", [5, [1], [1, 2, 3], [2, 1], [1, 1], ["a", 2], [True, 2], [0, 1e400], {}, "0 1"])
def test_bad_value_range(root, value):
    with pytest.raises(InputError, match="meta.json: value_range .* is not .low, high.; "):
        with_rules(root, value_range=value)


@pytest.mark.parametrize("value", [-1, None, "5", [1], True, float("nan")])
def test_bad_mask_threshold(root, value):
    with pytest.raises(InputError, match="meta.json: mask_threshold .* is not a number of at least 0; "):
        with_rules(root, mask_threshold=value)


def test_description_elsewhere(root, tmp_path):
    """--meta FILE; its paths are relative to the root."""
    expected = load(root)
    (root / "meta.json").rename(tmp_path / "other.json")
    dataset = load(root, meta=tmp_path / "other.json")
    assert dataset.entries == expected.entries and dataset.checksum == expected.checksum
    assert dataset[0]["mask"].any()
    refused(root, "meta.json: no such file")
    refused(root, f"{tmp_path}/none.json: no such file", meta=tmp_path / "none.json")
    refused(root, f"{tmp_path}: is not a file", meta=tmp_path)


def test_released_reading_is_another_one(root):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 20, 3), dtype=np.uint8))
    image.convert("P").save(root / "bottle/good.png")
    viewer, released = (load(root, read_as=how)[1]["image"] for how in ("viewer", "released"))
    assert viewer.shape == released.shape == (3, SIZE, SIZE)
    assert (viewer - released).abs().max() > 0.1


def test_warnings_of_turned_images(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (20, 10)).save(root / "bottle/bad.png", exif=exif)
    (said,) = load(root).warnings  # the mask has the size of the pixels as they are stored
    assert "turned along" in said and "bottle/bad_mask.png" in said
    assert load(root, read_as="released").warnings == []
    save_mask(root / "bottle/bad_mask.png", size=(10, 20))
    assert load(root).warnings == []
    (said,) = load(root, read_as="released").warnings
    assert "differ in size" in said
    save_mask(root / "bottle/bad_mask.png", size=(7, 20))
    assert "differ in size" in load(root).warnings[0]
    exif[0x0112] = 3
    Image.new("L", (20, 10)).save(root / "bottle/bad.png", exif=exif)
    save_mask(root / "bottle/bad_mask.png")
    (said,) = load(root).warnings
    assert "nothing tells" in said


def test_warnings_of_masks():
    assert mask_warnings({"a": 0.1, "b": 0.9}, 24) == []
    blank, covered = mask_warnings({"a": 0.0, "b": 0.9, "c": 1.0}, 24)
    assert "masks of 1 anomalous images mark no pixel at 24 x 24 (first: a)" in blank
    assert "masks of 2 of 3 anomalous images mark more than half" in covered and "first: b" in covered


# Files


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
    reason = "cannot be read (No such file" if how == "missing" else "cannot be read as an image ("
    assert str(caught.value).startswith(f"{root / name}: {reason}")
    assert "\n" not in str(caught.value)


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


# Several data sets as one


@pytest.fixture
def second(tmp_path):
    """Another set, with rules of its own: a 16-bit image of a class that `root` has, too, and a mask in grey."""
    folder = tmp_path / "more" / "nested"
    save(folder / "bottle/bad.png", value=60)
    (folder / "nail").mkdir()
    Image.fromarray(np.array([[0, 1000, 2000, 3000]] * 4, dtype=np.uint16)).save(folder / "nail/deep.png")
    Image.fromarray(np.array([[0, 5, 127, 128]] * 4, dtype=np.uint8)).save(folder / "nail/mask.png")
    rows = {"bottle": [entry("bottle/bad.png")], "nail": [entry("nail/deep.png", "nail/mask.png", 1, "nail")]}
    write_meta(folder, {"test": rows, "value_range": [1000, 3000], "mask_threshold": 127})
    return folder


def test_one_set_stays_what_it_is(root):
    dataset = open_data([root], None, split="train")
    assert type(dataset) is AnomalyDataset and dataset.checksum == load(root, split="train").checksum
    assert open_data([root], [root / "meta.json"]).checksum == load(root).checksum


def test_joined_sets_read_each_image_by_its_sets_own_rules(root, second):
    dataset = open_data([root, second])
    dataset.fit(preprocess, SIZE)
    assert isinstance(dataset, JoinedDataset) and isinstance(dataset, AnomalyDataset)
    assert len(dataset) == 5 and dataset.classes == ["bottle", "cable", "nail"] and dataset.has_masks
    singles = [load(root), load(second)]
    items = [each[index] for each in singles for index in range(len(each))]
    for index, expected in enumerate(items):
        item = dataset[index]
        assert list(item) == list(expected)
        assert torch.equal(item["image"], expected["image"]) and torch.equal(item["mask"], expected["mask"])
        assert item["label"] == expected["label"] and item["class_name"] == expected["class_name"]
        assert item["image_path"] == expected["image_path"] == dataset.path(dataset.entries[index].image_path)
    assert np.asarray(dataset.image(4))[0, :, 0].tolist() == [0, 0, 128, 255]
    assert dataset.mask(4, (4, 4))[0].tolist() == [0, 0, 0, 1]
    assert dataset.entries[4].mask_path == "more/nested/nail/mask.png" and dataset.entries[3].mask_path == ""
    paths = [each.image_path for each in dataset.entries]
    assert len(set(paths)) == 5 and {"data/bottle/bad.png", "more/nested/bottle/bad.png"} < set(paths)


@pytest.mark.parametrize("workers", [0, 2])
def test_joined_sets_in_processes_that_read_images(root, second, workers):
    dataset = open_data([root, second])
    dataset.fit(preprocess, SIZE)
    (batch,) = DataLoader(dataset, batch_size=5, num_workers=workers)
    assert torch.equal(batch["image"], torch.stack([dataset[index]["image"] for index in range(5)]))


def test_checksum_of_joined_sets_follows_the_sets_and_their_order(root, second, tmp_path):
    checksum = open_data([root, second]).checksum
    assert re.fullmatch("[0-9a-f]{64}", checksum)
    assert checksum not in (load(root).checksum, load(second).checksum, open_data([second, root]).checksum)
    shutil.copytree(second, tmp_path / "copy")
    assert open_data([root, tmp_path / "copy"]).checksum == checksum
    with (second / "bottle/bad.png").open("ab") as file:
        file.write(b"more")
    assert open_data([root, second]).checksum != checksum


def test_a_set_inside_the_folder_of_another(root):
    inside = root / "inside"
    save(inside / "good.png", value=7)
    write_meta(inside, {"test": {"bottle": [entry("good.png")]}})
    for roots in ([root, inside], [inside, root]):
        dataset = open_data(roots)
        assert dataset.root == str(root)
        assert sorted(each.image_path for each in dataset.entries)[-1] == "inside/good.png"
        assert {dataset.path(each.image_path) for each in dataset.entries} == {
            each.path(one.image_path) for each in dataset.sets for one in each.entries
        }


def test_joined_sets_name_what_is_wrong_by_set(root, second):
    save_mask(root / "bottle/bad_mask.png", size=(40, 40), box=(0, 0, 20, 40))
    (said,) = open_data([second, root]).warnings
    assert said.startswith(f"{root}: 1 masks differ in size") and "(first: bottle/bad_mask.png)" in said
    (second / "meta.json").unlink()
    with pytest.raises(InputError, match="nested/meta.json: no such file; "):
        open_data([root, second])


def test_normal_images_alone_join_a_set_with_masks(root, second):
    write_meta(second, {"test": {"bottle": [entry("bottle/bad.png")]}})
    assert open_data([root, second]).has_masks and open_data([second, root]).has_masks
    write_meta(second, {"test": {"bottle": [entry("bottle/bad.png", "", 1)]}})
    with pytest.raises(InputError, match="nested has no masks and .*data has; "):
        open_data([root, second])


def test_an_image_of_two_sets_is_refused_however_its_folder_is_spelled(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    write_meta(tmp_path, {"test": {"bottle": [entry("bottle/good.png")]}})
    with pytest.raises(InputError, match="data/bottle/good.png belongs to two of the data sets; "):
        open_data([root, tmp_path / "link"], [root / "meta.json", tmp_path / "meta.json"])
    write_meta(tmp_path, {"test": {"bottle": [entry("bottle/train.png")]}})
    assert len(open_data([root, tmp_path / "link"], [root / "meta.json", tmp_path / "meta.json"])) == 4
