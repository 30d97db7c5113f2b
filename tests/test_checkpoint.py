"""checkpoint.py: files that are not opened, checkpoints of other methods, towers, weights and activations."""

import copy
import os
import shutil

import open_clip
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
