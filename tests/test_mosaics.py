"""mosaics.py: what is drawn, how a mosaic and its mask look, and a training with them."""

import numpy as np
import pytest
import torch
from helpers import assert_same_checkpoint, check_error, run
from PIL import Image

import features
from dataset import AnomalyDataset
from mosaics import MosaicDataset, order_of

VAND = ("--method", "vand", "--model", "tiny", "--features_list", 6, "--num_workers", 0, "--device", "cpu")


def test_the_draws_depend_on_seed_and_epoch_alone(data):
    dataset = AnomalyDataset(data)
    short, long = (MosaicDataset(dataset, 0.5, epochs, seed=7) for epochs in (2, 5))
    count = len(dataset)
    assert torch.equal(short.replaced, long.replaced[:2]) and short.mosaics == long.mosaics[: len(short.mosaics)]
    assert not torch.equal(long.replaced[0] >= count, long.replaced[1] >= count)
    assert MosaicDataset(dataset, 0.5, 2, seed=8).mosaics != short.mosaics
    assert sorted(long.replaced[long.replaced >= count].tolist()) == list(range(count, len(long)))
    for row in long.replaced:
        for index, stands in enumerate(row.tolist()):
            four = long.mosaics[stands - count] if stands >= count else (index,)
            assert {dataset.entries[each].class_name for each in four} == {dataset.entries[index].class_name}
            assert long.entries[stands].class_name == dataset.entries[index].class_name
            if stands >= count:
                assert long.entries[stands].label == max(dataset.entries[each].label for each in four)
    assert short.checksum not in (dataset.checksum, long.checksum)


def test_a_fifth_is_replaced(data):
    drawn = MosaicDataset(AnomalyDataset(data), 0.2, 500, seed=111)
    assert len(drawn.mosaics) / (500 * 12) == pytest.approx(0.2, abs=0.015)
    assert len(MosaicDataset(AnomalyDataset(data), 0.0, 3, seed=111).mosaics) == 0


def test_a_mosaic_and_its_mask(data):
    dataset = AnomalyDataset(data)
    mosaics = MosaicDataset(dataset, 1.0, 1, seed=1)
    for number, four in enumerate(mosaics.mosaics, start=len(dataset)):
        picture = np.asarray(mosaics.image(number))
        mask = mosaics.mask(number, (160, 120))
        assert picture.shape == (120, 160, 3) and mask.shape == (120, 160)
        for place, index in enumerate(four):
            top, left = place // 2 * 60, place % 2 * 80
            assert np.array_equal(picture[top : top + 60, left : left + 80], np.asarray(dataset.image(index)))
            # the part of the mask is the image's own, at half the size
            own = dataset.mask(index, (80, 60))
            part = mask[top : top + 60, left : left + 80]
            assert (part != own).mean() < 0.02 and bool(part.any()) == bool(dataset.entries[index].label)
    assert np.array_equal(np.asarray(mosaics.image(3)), np.asarray(dataset.image(3)))
    assert np.array_equal(mosaics.mask(3, 48), dataset.mask(3, 48))


def test_images_of_other_sizes_get_that_of_the_first(data, monkeypatch):
    dataset = AnomalyDataset(data)
    sizes = [(20 + 3 * index, 30 + index) for index in range(len(dataset))]
    monkeypatch.setattr(AnomalyDataset, "image", lambda self, index: Image.new("RGB", sizes[index], (index, 0, 0)))
    mosaics = MosaicDataset(dataset, 1.0, 1, seed=1)
    width, height = sizes[mosaics.mosaics[0][0]]
    assert mosaics.image(len(dataset)).size == (2 * width, 2 * height)


def test_the_order_of_an_epoch(data):
    dataset = AnomalyDataset(data)
    mosaics, order = MosaicDataset(dataset, 0.5, 3, seed=7), torch.randperm(12)
    assert torch.equal(order_of(mosaics, order, 2), mosaics.replaced[1][order])
    assert torch.equal(order_of(dataset, order, 2), order)


def test_training_with_mosaics(data, tmp_path, monkeypatch, capsys):
    """The same with and without a cache and after an interruption; another result than without mosaics."""
    common = ("--train_data_path", data, "--epoch", 3, "--batch_size", 5, *VAND)
    mosaics = ("--mosaics", 0.5, "--cache_dir", tmp_path / "cache")
    encoded, original = [], features.encode

    def encode(method, images):
        encoded.append(len(images))
        return original(method, images)

    with monkeypatch.context() as patch:
        patch.setattr(features, "encode", encode)
        assert run(patch, "train", *common, *mosaics, "--cache", "ram", "--save_path", tmp_path / "ram") == 0
    made = len(MosaicDataset(AnomalyDataset(data), 0.5, 3, seed=111).mosaics)
    assert sum(encoded) == 1 + 12 + made  # one to learn the shapes; then each image and each mosaic once
    for cache in ("none", "disk"):
        assert run(monkeypatch, "train", *common, *mosaics, "--cache", cache, "--save_path", tmp_path / cache) == 0
        assert_same_checkpoint(tmp_path / "ram" / "epoch_3.pth", tmp_path / cache / "epoch_3.pth")
    assert run(monkeypatch, "train", *common, "--cache", "ram", "--save_path", tmp_path / "plain") == 0
    weights = [torch.load(tmp_path / name / "epoch_3.pth", weights_only=True) for name in ("ram", "plain")]
    assert not torch.equal(*(each["trainable_linearlayer"]["fc.0.weight"] for each in weights))
    assert weights[0]["training"]["mosaics"] == 0.5 and weights[1]["training"]["mosaics"] == 0

    stopped = ("--save_path", tmp_path / "stopped", "--cache", "ram")
    short = ("--train_data_path", data, "--epoch", 1, "--batch_size", 5, *VAND, *mosaics, *stopped)
    assert run(monkeypatch, "train", *short) == 0
    assert run(monkeypatch, "train", *common, *mosaics, *stopped, "--resume") == 0
    assert_same_checkpoint(tmp_path / "ram" / "epoch_3.pth", tmp_path / "stopped" / "epoch_3.pth")
    capsys.readouterr()
    assert run(monkeypatch, "train", *common, *stopped, "--resume") == 2
    check_error(capsys, "mosaics")


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--mosaics", 1.5), "is not between 0.0 and 1.0"), (("--method", "coop", "--mosaics", 0.2), "not a flag of")],
)
def test_what_is_refused(data, tmp_path, monkeypatch, capsys, flags, message):
    assert run(monkeypatch, "train", "--train_data_path", data, "--save_path", tmp_path, *VAND, *flags) == 2
    assert message in capsys.readouterr().err
