"""The procedural data sets and the recipe of the embedded backbone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synthetic import captions, categories, defects, photograph, pretrain, render, world

ROOT = Path(__file__).resolve().parent.parent
SIZE = 48


@pytest.fixture(scope="module")
def tiny_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both data sets with one image of each sort."""
    out = tmp_path_factory.mktemp("synthetic")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRAIN_GOOD", "TEST_GOOD", "PER_KIND"):
            patch.setattr(render, name, 1)
        for group in ("auxiliary", "target"):
            render.render_set(out, group, 0, SIZE)
    return out


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_same_seed_same_bytes(tiny_sets, tmp_path, monkeypatch):
    for name in ("TRAIN_GOOD", "TEST_GOOD", "PER_KIND"):
        monkeypatch.setattr(render, name, 1)
    render.render_set(tmp_path, "target", 0, SIZE)
    assert all_bytes(tmp_path / "target") == all_bytes(tiny_sets / "target")
    render.render_set(tmp_path / "other", "target", 1, SIZE)
    assert all_bytes(tmp_path / "other" / "target") != all_bytes(tiny_sets / "target")


@pytest.mark.parametrize("group", ["auxiliary", "target"])
def test_layout_is_mvtec(tiny_sets, group):
    folder = tiny_sets / group
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(render.categories(group))
    for category in render.categories(group):
        assert (folder / category / "train/good/000.png").is_file()
        assert (folder / category / "test/good/000.png").is_file()
        for kind in defects.KINDS[group]:
            image = Image.open(folder / category / "test" / kind / "000.png")
            mask = Image.open(folder / category / "ground_truth" / kind / "000_mask.png")
            assert image.mode == "RGB" and image.size == mask.size == (SIZE, SIZE)
            assert set(np.unique(np.array(mask))) == {0, 255}
    assert not list(tiny_sets.glob(".*.tmp"))


@pytest.mark.parametrize("group", render.SETS)
def test_image_differs_from_its_twin_in_the_mask_only(group):
    for category in render.categories(group):
        for kind in defects.KINDS[group]:
            image, twin, mask = render.draw(group, category, kind, 0, seed=3)
            changed = (image != twin).any(2)
            assert defects.MIN_AREA <= mask.mean() <= defects.MAX_AREA, (category, kind)
            assert not (changed & ~mask).any()
            assert changed[mask].mean() > 0.6, (category, kind)
        image, twin, mask = render.draw(group, category, "good", 0, seed=3)
        assert (image == twin).all() and not mask.any()


def test_sets_share_no_category_and_no_kind():
    groups = [categories.CATEGORIES[group] for group in render.SETS]
    assert len(set().union(*groups)) == sum(map(len, groups))
    kinds = [pair for group in render.SETS for pair in defects.KINDS[group].values()]
    assert len(set(kinds)) == len(kinds)
    assert not set(kinds) & set(defects.FREE_KINDS)
    names = [name for group in render.SETS for name in defects.KINDS[group]]
    assert len(set(names)) == len(names)


def test_pretraining_never_names_a_target():
    words = set(captions.all_words().replace(".", " ").split())
    assert not words & (set(categories.CATEGORIES["target"]) | set(defects.KINDS["target"]))
    rng = np.random.default_rng(0)
    scenes = [world.random_scene(rng, 32, natural=bool(number % 2)) for number in range(300)]
    assert {scene.noun.split()[-1] for scene in scenes} <= captions.NOUNS
    assert {word for scene in scenes for word in f"{scene.colour} {scene.noun}".split()} <= words


def test_fine_defects_cover_less():
    rng = np.random.default_rng(0)
    for where in defects.WHERE:
        areas = {}
        for fine in (False, True):
            scenes = [world.random_scene(rng, SIZE, natural=True) for _ in range(12)]
            drawn = [defects.add_defect(rng, scene, where, "paint", 20, fine) for scene in scenes]
            areas[fine] = [mask.mean() for _, mask, visible in drawn if visible]
            assert len(areas[fine]) > 6, where
        assert min(areas[False]) >= defects.MIN_AREA > min(areas[True]) >= defects.FINE_AREA, where
        assert np.mean(areas[True]) < 0.7 * np.mean(areas[False]), where


def test_a_camera_treats_both_twins_alike():
    rng = np.random.default_rng(0)
    scene = world.random_scene(rng, SIZE, natural=True)
    image, mask, _ = defects.add_defect(rng, scene, "oval", "paint")
    for _ in range(40):
        camera = photograph.random_camera(rng, SIZE, grey=0.5)
        taken = photograph.photograph(np.random.default_rng(1), image, camera)
        again = photograph.photograph(np.random.default_rng(1), image, camera)
        assert taken.shape == image.shape and taken.dtype == np.float32 and (taken == again).all()
        assert 0 <= taken.min() and taken.max() <= 1 and taken.std() > 0.01
        assert not camera.grey or np.ptp(taken, axis=2).max() == 0
        camera.blur, camera.noise, camera.quality = 0, 0, 0
        twins = [photograph.photograph(rng, twin, camera) for twin in (scene.image, image)]
        changed = (twins[0] != twins[1]).any(2)
        assert changed.any() and not (changed & ~mask).any()


def test_a_batch_depends_on_seed_and_number_alone_and_grey_pictures_name_no_colour():
    batch, again, other = pretrain.Batches(3)[5], pretrain.Batches(3)[5], pretrain.Batches(3)[6]
    assert torch.equal(batch["images"], again["images"]) and batch["named"] == again["named"]
    assert not torch.equal(batch["images"], other["images"])
    pairs = len(batch["masks"])
    grey = (batch["images"][:pairs] == batch["images"][:pairs, :1]).flatten(1).all(1)
    assert 0 < grey.sum() < pairs / 2
    for picture, triple in zip(grey, batch["named"], strict=True):
        assert not picture or not set(world.HUES) & set(" ".join(triple).replace(".", "").split())


def test_a_scene_looks_alike_at_two_sizes():
    small, large = (render.draw("target", "clock", "good", 0, seed=0, size=size)[0].astype(float) for size in (48, 96))
    assert np.abs(large.reshape(48, 2, 48, 2, 3).mean((1, 3)) - small).mean() < 4


def test_complete_set_is_left_alone_and_another_seed_refused(tiny_sets, capsys):
    before = (tiny_sets / "target").stat().st_mtime_ns
    render.render_set(tiny_sets, "target", 0, SIZE)
    assert "complete" in capsys.readouterr().out
    assert (tiny_sets / "target").stat().st_mtime_ns == before
    with pytest.raises(render.InputError, match="seed 5"):
        render.render_set(tiny_sets, "target", 5, SIZE)


@pytest.mark.parametrize("flags", [["--size", "7"], ["--seed", "-1"], ["--out", "README.md/x"]])
def test_bad_input_is_one_line(flags, tmp_path):
    (tmp_path / "README.md").touch()
    command = [sys.executable, str(ROOT / "synthetic/render.py"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")


@pytest.fixture
def small_recipe(monkeypatch):
    """A recipe of seconds: a narrow model, few pairs, no probe."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    monkeypatch.setattr(pretrain, "MODEL", {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    for name, value in {"PAIRS": 4, "SMALL": 24, "FULL": 32}.items():
        monkeypatch.setattr(pretrain, name, value)
    monkeypatch.setattr(pretrain, "probe", lambda weights: {"pixel": 50.0})


def test_pretraining_resumes_to_the_same_weights_and_exports(small_recipe, tmp_path):
    straight = pretrain.pretrain(tmp_path / "a", tmp_path / "a", 6, 10, seed=0, workers=0, save_every=3)
    pretrain.pretrain(tmp_path / "b", tmp_path / "b", 6, 1e-9, seed=0, workers=0, save_every=3)
    resumed = pretrain.pretrain(tmp_path / "b", tmp_path / "b", 6, 10, seed=0, workers=0, save_every=3)
    assert straight.step == resumed.step == 6
    for name, tensor in straight.averaged().items():
        assert torch.equal(tensor, resumed.averaged()[name]), name
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()

    load_with_open_clip(tmp_path / "a")


def load_with_open_clip(folder: Path) -> None:
    """Load an exported checkpoint into open_clip.CLIP and use both towers."""
    import json

    import open_clip
    from safetensors.torch import load_file

    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    clip = open_clip.CLIP(**config["model_cfg"]).eval()
    weights = load_file(folder / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    clip.load_state_dict(weights)
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    with torch.no_grad():
        image = clip.encode_image(torch.zeros(1, 3, size, size))
        text = clip.encode_text(open_clip.SimpleTokenizer(context_length=77)(["a photo of a damaged object."]))
    assert image.shape == text.shape == (1, config["model_cfg"]["embed_dim"])
    assert torch.isfinite(image).all() and torch.isfinite(text).all()


def test_shipped_checkpoint_is_small_and_loads():
    folder = ROOT / "checkpoints" / "tiny"
    assert (folder / "model.safetensors").stat().st_size < 18e6
    load_with_open_clip(folder)


def test_loss_goes_down(small_recipe):
    trainer = pretrain.Trainer(seed=0, steps=1000)
    batch = pretrain.Batches(seed=0)[0]
    losses = [sum(trainer.train_step(batch)[name] for name in ("state", "grounding")) for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0]
