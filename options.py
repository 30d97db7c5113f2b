"""Command-line flags shared by the scripts, and how they and a checkpoint's settings become one set of settings."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from typing import TYPE_CHECKING

from utils import InputError, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from AnomalyCLIP_lib import AnomalyCLIP

PROMPTS = ("object-agnostic", "object-aware", "hand-written")
DEFAULTS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "dpam_layer": None,
    "dpam_mode": "vv",
    "n_ctx": 12,
    "depth": None,
    "t_n_ctx": 4,
    "prompt": "object-agnostic",
}


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def count(text: str) -> int:
    """argparse type: an integer of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def not_negative(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the model, the prompts and the machine; None means: not given."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="open_clip model, or tiny for the embedded one (ViT-L-14-336)")
    model.add_argument("--pretrained", help="open_clip tag or weights file (openai)")
    model.add_argument("--image_size", type=positive, help="pixels; a multiple of the patch size (518 for patch 14)")
    model.add_argument(
        "--features_list", type=int, nargs="+", metavar="N", help="1-based blocks that are tapped (6 12 18 24)"
    )
    model.add_argument(
        "--feature_map_layer",
        type=int,
        nargs="+",
        metavar="N",
        default=[0, 1, 2, 3],
        help="only the first value matters: 0-based index into features_list from which on maps are used",
    )
    model.add_argument("--dpam_layer", type=int, help="DPAM in the last N - 1 blocks; 1: off (20 for 24 blocks)")
    model.add_argument("--dpam_mode", choices=("vv", "qq", "kk"), help="what DPAM multiplies (vv)")
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--prompt", choices=PROMPTS, help="kind of text prompts (object-agnostic)")
    prompts.add_argument("--n_ctx", type=positive, help="learned context vectors per prompt (12)")
    prompts.add_argument("--depth", type=positive, help="text blocks with learned tokens; 1: only the prompt (9)")
    prompts.add_argument("--t_n_ctx", type=positive, help="learned tokens per deep text block (4)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cuda, mps or cpu (the best there is)")
    machine.add_argument(
        "--num_workers", type=count, default=min(4, os.cpu_count() or 1), help="image-reading processes"
    )
    machine.add_argument("--seed", type=count, default=111)


def settings_from(args: argparse.Namespace, checkpoint: dict | None = None) -> dict:
    """Settings given by flags, else by the checkpoint, else the defaults.

    A flag that contradicts the checkpoint raises an InputError naming both values. Weights files may have moved, so
    `pretrained` is not compared here but by content, see `weights_checksum`.
    """
    given = {key: getattr(args, key) for key in DEFAULTS if getattr(args, key) is not None}
    if "features_list" in given:
        given["features_list"] = tapped_layers(given["features_list"], args.feature_map_layer)
    stored = checkpoint["settings"] if checkpoint else {}
    for key, value in given.items():
        if key != "pretrained" and stored.get(key, value) not in (value, None):
            raise InputError(f"--{key} {show(value)} contradicts {args.checkpoint_path}, made with {show(stored[key])}")
    settings = DEFAULTS | stored | given
    if settings["model"] == "tiny":
        if "pretrained" in given:
            raise InputError(
                f"--pretrained {given['pretrained']} cannot be used with --model tiny, which has its own weights"
            )
        settings["pretrained"] = None
    elif "pretrained" in given and "model" not in stored | given:
        from AnomalyCLIP_lib.backbones import is_file_name

        if is_file_name(given["pretrained"]):
            settings["model"] = None  # its geometry is read from the file
    return settings


def show(value: object) -> str:
    """A flag's value as typed on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def tapped_layers(features_list: list[int], feature_map_layer: list[int]) -> list[int]:
    """Blocks whose maps are used: the released scripts leave out those before index feature_map_layer[0]."""
    first = feature_map_layer[0]
    if not 0 <= first < len(features_list):
        raise InputError(f"--feature_map_layer {first} leaves nothing of --features_list {show(features_list)}")
    return features_list[first:]


def load_model(settings: dict, feature_map_layer: list[int], device: str) -> AnomalyCLIP:
    """Load the backbone and complete `settings` (in place) with what depends on it."""
    import AnomalyCLIP_lib

    model = AnomalyCLIP_lib.load(
        settings["model"],
        settings["pretrained"],
        image_size=settings["image_size"],
        dpam_layer=settings["dpam_layer"],
        dpam_mode=settings["dpam_mode"],
        device=device,
    )
    if settings["features_list"] is None:
        quarters = [-(-model.num_layers * quarter // 4) for quarter in (1, 2, 3, 4)]
        settings["features_list"] = tapped_layers(quarters, feature_map_layer)
    model.check_layers(settings["features_list"])
    settings["image_size"], settings["dpam_layer"] = model.image_size, model.dpam_layer
    if settings["depth"] is None:
        settings["depth"] = min(9, model.num_text_layers)
    return model


def weights_checksum(model: AnomalyCLIP) -> str:
    """sha256 over the backbone's weights: the same for the same weights, wherever their file lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> dict:
    """A checkpoint of train.py or of the authors: {"prompt_learner": state dict, "settings": dict, ...}.

    The authors' files have no settings; the sizes of the prompts are then read from the tensors.
    """
    import torch

    from prompt_ensemble import learner_sizes

    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist; check --checkpoint_path, or train one with train.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile pickles fail in many ways; none of them is opened
        strange = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors, or is no torch file" if strange else one_line(error)
        raise InputError(
            f"{path} is not opened ({reason}); give an epoch_N.pth of train.py or of the authors"
        ) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("prompt_learner"), dict):
        raise InputError(f'{path} is no AnomalyCLIP checkpoint: no "prompt_learner" in it; give an epoch_N.pth')
    try:
        sizes = learner_sizes(checkpoint["prompt_learner"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    checkpoint.setdefault("settings", {})
    checkpoint["settings"] |= sizes
    return checkpoint
