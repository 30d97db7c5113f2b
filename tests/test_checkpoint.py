"""checkpoint.py: files that are not opened, checkpoints of other methods, towers, weights and activations."""

import copy
import os
import shutil
import warnings

import open_clip
import pytest
import torch
from helpers import QUICK, TINY, check_error, run

from checkpoint import newest_checkpoint
from prompt_ensemble import PromptLearner


def test_a_checkpoint_for_another_text_tower(data, small_model, tmp_path, monkeypatch, capsys):
    torch.save({"prompt_learner": PromptLearner(small_model).state_dict()}, tmp_path / "depth 9.pth")
    torch.save({"prompt_learner": PromptLearner(small_model, depth=4).state_dict()}, tmp_path / "depth 4.pth")
    wide = {
        key: value.repeat(1, 1, 1, 6) for key, value in PromptLearner(small_model).state_dict().items() if "ctx" in key
    }
    torch.save({"prompt_learner": wide}, tmp_path / "width 768.pth")
    for file, code, message in (
        ("depth 9.pth", 2, "text tower has 4"),
        ("width 768.pth", 2, "prompts have width 768"),
        ("depth 4.pth", 0, ""),
    ):
        arguments = ("--data_path", data, "--checkpoint_path", tmp_path / file, "--save_path", tmp_path / "run")
        assert run(monkeypatch, "test", *arguments, *QUICK) == code
        if code:
            check_error(capsys, f"{file}: .*{message}")


def test_a_checkpoint_trained_on_other_weights(data, trained, tmp_path, monkeypatch, capsys):
    checkpoint = torch.load(trained / "epoch_2.pth", weights_only=True)
    checkpoint["settings"]["weights_sha256"] = "0" * 64
    torch.save(checkpoint, tmp_path / "moved.pth")
    arguments = ("--data_path", data, "--checkpoint_path", tmp_path / "moved.pth", "--save_path", tmp_path / "run")
    assert run(monkeypatch, "test", *arguments) == 2
    check_error(capsys, "trained on other weights")


def test_a_checkpoint_that_is_not_plain_is_not_opened(data, tmp_path, monkeypatch, capsys):
    torch.save({"prompt_learner": {"ctx_pos": os.system}}, tmp_path / "hostile.pth")
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    for file, message in (("hostile.pth", "not opened"), ("other.pth", "not a checkpoint of --method anomalyclip")):
        arguments = ("--data_path", data, "--checkpoint_path", tmp_path / file, "--save_path", tmp_path)
        assert run(monkeypatch, "test", *arguments, *QUICK) == 2
        check_error(capsys, message)


def test_checkpoints_of_other_methods_are_refused(data, checkpoints, tmp_path, monkeypatch, capsys):
    common = ("--data_path", data, "--save_path", tmp_path / "run", *TINY)
    assert run(monkeypatch, "test", *common, "--checkpoint_path", checkpoints["vand"], "--method", "anomalyclip") == 2
    check_error(capsys, "--method anomalyclip contradicts .*epoch_2.pth, made with vand")
    assert run(monkeypatch, "test", *common, "--checkpoint_path", checkpoints["coop"], "--method", "clip") == 2
    check_error(capsys, "--method clip contradicts .*epoch_2.pth, made with coop")
    theirs = {"trainable_linearlayer": torch.load(checkpoints["vand"], weights_only=True)["trainable_linearlayer"]}
    torch.save(theirs, tmp_path / "authors.pth")
    assert run(monkeypatch, "test", *common, "--checkpoint_path", tmp_path / "authors.pth") == 2
    check_error(capsys, 'no "prompt_learner" in it; it looks like one of --method vand')
    assert run(monkeypatch, "test", *common, "--checkpoint_path", tmp_path / "authors.pth", "--method", "winclip") == 2
    check_error(capsys, "--method winclip is not trained; leave out --checkpoint_path")
    assert run(monkeypatch, "test", *common, "--checkpoint_path", tmp_path / "authors.pth", "--method", "vand") == 0


def test_a_checkpoint_of_a_method_that_is_not_here(data, checkpoints, tmp_path, monkeypatch, capsys):
    checkpoint = torch.load(checkpoints["vand"], weights_only=True)
    checkpoint["settings"]["method"] = "newer"
    torch.save(checkpoint, tmp_path / "newer.pth")
    arguments = ("--data_path", data, "--save_path", tmp_path, "--checkpoint_path", tmp_path / "newer.pth")
    assert run(monkeypatch, "test", *arguments, *TINY) == 2
    check_error(capsys, "made with --method newer, which this version does not have")


def test_a_schedule_is_not_changed_by_resuming(data, checkpoints, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints["coop"].parent, folder)
    arguments = ("--train_data_path", data, "--save_path", folder, "--method", "coop", "--resume", *TINY)
    assert run(monkeypatch, "train", *arguments, "--epoch", 3) == 2
    check_error(capsys, "--resume: epoch is 3 now but was 2")


def test_a_checkpoint_is_tested_with_the_activation_of_its_training(data, weights_file, tmp_path, monkeypatch, capsys):
    """A weights file has QuickGELU without --model, and what open_clip's configuration says with it."""
    config = open_clip.get_model_config("ViT-L-14-336")
    config["embed_dim"] = 96
    config["vision_cfg"] |= {"width": 128, "image_size": 84}
    config["text_cfg"] |= {"width": 128, "heads": 2}
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: copy.deepcopy(config))
    common = ("--pretrained", weights_file, "--image_size", 84, "--features_list", 24, "--num_workers", 0)
    named = ("--model", "ViT-L-14-336")
    for folder, flags in (("plain", ()), ("named", named)):
        arguments = ("--train_data_path", data, "--save_path", tmp_path / folder, "--epoch", 1, *common, *flags)
        assert run(monkeypatch, "train", *arguments) == 0
    settings = [
        torch.load(tmp_path / name / "epoch_1.pth", weights_only=True)["settings"] for name in ("plain", "named")
    ]
    assert [each["activation"] for each in settings] == ["QuickGELU", "GELU"]
    assert settings[0]["weights_sha256"] == settings[1]["weights_sha256"]

    arguments = ("--data_path", data, "--save_path", tmp_path / "test", *common)
    assert run(monkeypatch, "test", *arguments, "--checkpoint_path", tmp_path / "plain" / "epoch_1.pth") == 0
    assert run(monkeypatch, "test", *arguments, *named, "--checkpoint_path", tmp_path / "plain" / "epoch_1.pth") == 2
    check_error(capsys, "epoch_1.pth was trained with QuickGELU, but .* is run with GELU here; give --model and")
    arguments = ("--data_path", data, "--save_path", tmp_path / "test of named", *common)
    assert run(monkeypatch, "test", *arguments, *named, "--checkpoint_path", tmp_path / "named" / "epoch_1.pth") == 0


def test_a_checkpoint_without_the_newer_settings_is_still_read(data, trained, tmp_path, monkeypatch):
    """Those of the authors hold none, those of older versions no activation."""
    checkpoint = torch.load(trained / "epoch_2.pth", weights_only=True)
    del checkpoint["settings"]["activation"]
    torch.save(checkpoint, tmp_path / "epoch_2.pth")
    common = ("--data_path", data, "--checkpoint_path", tmp_path / "epoch_2.pth", "--save_path", tmp_path / "test")
    assert run(monkeypatch, "test", *common, *QUICK) == 0
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--epoch", 3, "--resume", *QUICK)
    assert run(monkeypatch, "train", *arguments) == 0


def test_newest_checkpoint_passes_over_other_files(trained, tmp_path):
    record = torch.load(trained / "epoch_2.pth", weights_only=True)
    for name in ("epoch_².pth", "epoch_x.pth", "epoch_.pth"):
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path, record, resume=True) is None
    for epoch in (1, 2):
        shutil.copy(trained / f"epoch_{epoch}.pth", tmp_path)
    assert newest_checkpoint(tmp_path, record, resume=True)["epoch"] == 2


# What a checkpoint may hold


def faulty(checkpoint: dict, place: tuple, value: object) -> dict:
    """A copy of a checkpoint with another value at a place in it; DELETE takes it away."""
    changed = inside = copy.copy(checkpoint)
    for key in place[:-1]:
        inside[key] = copy.copy(inside[key])
        inside = inside[key]
    if value is DELETE:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return changed


DELETE = object()
CTX = torch.zeros(1, 1, 12, 128)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch is to lose these
    QUANTISED = torch.quantize_per_tensor(CTX, 1, 0, torch.qint8)
FAULTS = [
    (("prompt_learner", "ctx_pos"), value)
    for value in (
        None, 5, [1.0], "text", DELETE, torch.zeros(3), CTX.to_sparse(), CTX.to("meta"), CTX.int(), CTX.bool(),
        CTX.to(torch.uint8), CTX.to(torch.complex64), torch.zeros(1).expand(1, 1, 2**40, 128), CTX[:, :, :0],
        torch.full_like(CTX, torch.nan), torch.full_like(CTX, torch.inf), QUANTISED,
    )
]  # fmt: skip
FAULTS += [(("prompt_learner", "compound_prompts_text.0"), value) for value in (None, 3, torch.tensor(1.0))]
FAULTS += [(("prompt_learner", key), torch.zeros(1)) for key in (5, None, (1, 2), "more")]
FAULTS += [
    (("settings", key), value)
    for key, values in {
        "image_size": ("96", 96.0, float("nan"), 2**40, -96, True, [96]),
        "features_list": (6, "6", ["6"], [[6]], [], [True], [6.0]),
        "dpam_layer": ("6", [], 0, 2**40),
        "dpam_mode": ("kv", 1),
        "prompt": ("unknown", None, 5, [], {}),
        "n_ctx": ("12", 10**9),
        "depth": (0, "9"),
        "method": (5, "newer", ["anomalyclip"]),
        "model": (5, ["tiny"]),
        "activation": (1, None),
        "weights_sha256": (None, 5),
        "newer": (1,),
    }.items()
    for value in values
]
FAULTS += [(("settings",), value) for value in (None, 5, [], "text")]
TRAINING_FAULTS = [(("epoch",), value) for value in (-5, 1.5, None, "2", True, DELETE, 3)]
TRAINING_FAULTS += [(("training",), value) for value in (None, 5, [], {"epoch": [1]}, DELETE)]
TRAINING_FAULTS += [(("optimizer",), value) for value in (None, 5, {}, {"state": {}}, {"state": 5}, DELETE)]
TRAINING_FAULTS += [
    (("optimizer", "state", 0, "exp_avg"), value)
    for value in (None, DELETE, torch.zeros(3), torch.full_like(CTX, torch.nan), CTX.long())
]
TRAINING_FAULTS += [(("optimizer", "state", 0, "step"), value) for value in (None, torch.tensor(float("nan")), -1)]
TRAINING_FAULTS += [(("optimizer", "state", "a"), {}), (("optimizer", "state", 0), None)]


@pytest.mark.parametrize(("place", "value"), FAULTS)
def test_a_checkpoint_that_holds_something_else_is_named(data, trained, tmp_path, monkeypatch, capsys, place, value):
    checkpoint = torch.load(trained / "epoch_2.pth", weights_only=True)
    torch.save(faulty(checkpoint, place, value), tmp_path / "epoch_2.pth")
    arguments = ("--data_path", data, "--checkpoint_path", tmp_path / "epoch_2.pth", "--save_path", tmp_path / "run")
    assert run(monkeypatch, "test", *arguments, "--num_workers", 0) == 2
    check_error(capsys, r"epoch_2\.pth")


@pytest.mark.parametrize(("place", "value"), TRAINING_FAULTS)
def test_training_goes_on_from_nothing_else(data, trained, tmp_path, monkeypatch, capsys, place, value):
    checkpoint = torch.load(trained / "epoch_2.pth", weights_only=True)
    torch.save(faulty(checkpoint, place, value), tmp_path / "epoch_2.pth")
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--epoch", 3, "--resume", *QUICK)
    assert run(monkeypatch, "train", *arguments) == 2
    check_error(capsys, r"epoch_2\.pth")
    assert not (tmp_path / "epoch_3.pth").exists()


def test_a_damaged_checkpoint_is_noticed(data, trained, tmp_path, monkeypatch, capsys):
    content = bytearray((trained / "epoch_2.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "epoch_2.pth").write_bytes(content)
    arguments = ("--data_path", data, "--checkpoint_path", tmp_path / "epoch_2.pth", "--save_path", tmp_path / "run")
    assert run(monkeypatch, "test", *arguments, *QUICK) == 2
    check_error(
        capsys, r"epoch_2\.pth cannot be read as a checkpoint \(the checksum of its part .* is wrong\); give an"
    )


def test_a_checkpoint_that_is_a_pointer_or_a_page(data, tmp_path, monkeypatch, capsys):
    for content, message in ((b"version https://git-lfs.github.com/spec/v1", "Git LFS"), (b"<html>", "HTML page")):
        (tmp_path / "a.pth").write_bytes(content)
        arguments = ("--data_path", data, "--checkpoint_path", tmp_path / "a.pth", "--save_path", tmp_path / "run")
        assert run(monkeypatch, "test", *arguments, *QUICK) == 2
        check_error(capsys, f"a.pth is an? {message}")
