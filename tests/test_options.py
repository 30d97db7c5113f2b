"""options.py: whose flag is whose, what --help says of defaults, and what a weights file without --model means."""

import sys

import pytest
from helpers import SCRIPTS, TINY, check_error, run

from options import settings_from, shown_defaults


@pytest.mark.parametrize(("name", "model"), [("anomalyclip", None), ("vand", None), ("winclip", "ViT-B-16-plus-240")])
def test_a_weights_file_says_what_it_is_only_if_it_may_be_openais(name, model, monkeypatch):
    """Activations are not in the weights: OpenAI's have QuickGELU, WinCLIP's have GELU."""
    command = ["test.py", "--method", name, "--pretrained", "weights.pt", "--data_path", "."]
    monkeypatch.setattr(sys, "argv", command)
    settings, _ = settings_from(SCRIPTS["test"].parse_args(), "TESTING")
    assert settings["model"] == model and settings["pretrained"] == "weights.pt"


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (
            "test",
            ("--method", "clip", "--dpam_mode", "qq"),
            "--dpam_mode is not a flag of --method clip, which has",
        ),
        ("test", ("--method", "winclip", "--features_list", 6), "--features_list is not a flag of --method winclip"),
        ("test", ("--method", "vand", "--k_shot", 1), "--k_shot is not a flag of --method vand"),
        ("train", ("--method", "coop", "--lambda_local", 1), "--lambda_local is not a flag of --method coop"),
        ("train", ("--method", "clip"), "--method clip has nothing to train"),
        ("test", ("--method", "winclip", "--k_shot", 3), "--k_shot 3 is more than the 2 normal images .*metal_nut"),
        ("test", ("--method", "vand"), "--method vand needs --checkpoint_path FILE"),
        ("test", ("--method", "coop"), "--method coop needs --checkpoint_path FILE"),
    ],
)
def test_flags_that_do_not_fit_the_method(script, flags, message, data, tmp_path, monkeypatch, capsys):
    root = {"train": "--train_data_path", "test": "--data_path"}[script]
    assert run(monkeypatch, script, root, data, "--save_path", tmp_path, *flags, *TINY) == 2
    check_error(capsys, message)


@pytest.mark.parametrize(
    ("defaults", "shown"),
    [
        ({"anomalyclip": 12, "coop": 16}, "(12; coop: 16)"),
        ({"anomalyclip": 15, "coop": 200, "vand": 15}, "(15; coop: 200)"),
        ({"anomalyclip": None, "clip": None}, ""),
        ({"anomalyclip": False}, ""),
        ({"winclip": 0}, "(winclip: 0)"),
        ({"clip": False, "coop": False}, "(clip, coop)"),
        ({"clip": None}, "(clip)"),
    ],
)
def test_help_tells_defaults_and_owners(defaults, shown):
    assert shown_defaults(defaults) == shown
