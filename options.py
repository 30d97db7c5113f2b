"""Command-line flags of the scripts, and how they and a checkpoint's settings become one set of settings."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import methods
from utils import InputError, one_line, set_seed

if TYPE_CHECKING:
    from AnomalyCLIP_lib import AnomalyCLIP
    from methods._base import Base

PROMPTS = ("object-agnostic", "object-aware", "hand-written", "hand-written-object")


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


# Flags that methods may have. Their defaults stand in methods/NAME.py; a method may name flags that are not listed
# here, these get the type of their default.
FLAGS = {
    "model": {"help": "open_clip model, or tiny for the embedded one"},
    "pretrained": {"help": "open_clip tag or weights file"},
    "image_size": {"type": positive, "help": "pixels; a multiple of the patch size (518 for patch 14)"},
    "features_list": {
        "type": int,
        "nargs": "+",
        "metavar": "N",
        "help": "1-based blocks that are tapped (6 12 18 24; clip, clip_ac, coop: the last)",
    },
    "dpam_layer": {"type": int, "help": "DPAM in the last N - 1 blocks; 1: off (20 for 24 blocks)"},
    "dpam_mode": {"choices": ("vv", "qq", "kk"), "help": "what DPAM multiplies"},
    "prompt": {"choices": PROMPTS, "help": "kind of text prompts"},
    "n_ctx": {"type": positive, "help": "learned context vectors per prompt"},
    "depth": {"type": positive, "help": "text blocks with learned tokens; 1: only the prompt (9)"},
    "t_n_ctx": {"type": positive, "help": "learned tokens per deep text block"},
    "no_ln_post": {"help": "image feature without ln_post, as in AnomalyCLIP:"},
    "keep_underscores": {"help": "class names with underscores in the prompts:"},
    "raw_mean": {"help": "mean of the prompts' features, not of their unit vectors:"},
    "csc": {"help": "a learned context for each of the two states:"},
    "quick_gelu": {"help": "QuickGELU also at sizes other than the weights' own:"},
    "epoch": {"type": positive, "help": "passes over the data set"},
    "learning_rate": {"type": not_negative, "help": "of the optimiser"},
    "batch_size": {"type": positive, "help": "images per step, of all processes together"},
    "lambda_local": {"type": not_negative, "help": "weight of the local loss"},
    "no_global_loss": {"help": "leave out the image-level cross-entropy"},
    "no_local_loss": {"help": "leave out focal and dice loss"},
    "sigma": {"type": not_negative, "help": "Gaussian filter of the maps, pixels"},
    "k_shot": {"type": count, "help": "normal images of each class's train split to compare with"},
}


def add_flags(parser: argparse.ArgumentParser, part: str) -> None:
    """Flags of all methods (SETTINGS and `part`: TRAINING or TESTING) and of the machine; None means: not given."""
    known = {name: methods.flags(name) for name in methods.names()}
    parser.add_argument("--method", choices=known, help="row of the paper's tables (anomalyclip)")
    for title, section in (("model and prompts", "SETTINGS"), (part.lower(), part)):
        group = parser.add_argument_group(title)
        owners = {}
        for name, flags in known.items():
            for flag, default in flags[section].items():
                owners.setdefault(flag, {})[name] = default
        for flag in sorted(owners, key=lambda flag: (list(FLAGS).index(flag) if flag in FLAGS else len(FLAGS), flag)):
            default = next(iter(owners[flag].values()))
            options = FLAGS.get(flag, {"help": ""})
            options = options | {"help": f"{options['help']} {owners_and_defaults(owners[flag])}".strip()}
            if isinstance(default, bool):
                options |= {"action": "store_true", "default": None}
            elif flag not in FLAGS:
                options |= {"type": str if default is None else type(default)}
            group.add_argument(f"--{flag}", **options)
        if section == "SETTINGS":
            group.add_argument(
                "--feature_map_layer",
                type=int,
                nargs="+",
                metavar="N",
                default=[0, 1, 2, 3],
                help="only the first value matters: 0-based index into features_list from which on maps are used",
            )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cuda, mps or cpu (the best there is)")
    machine.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the frozen vision tower (fp32)"
    )
    machine.add_argument("--compile", action="store_true", help="torch.compile the frozen vision tower")
    machine.add_argument(
        "--cache",
        choices=("auto", "ram", "disk", "none"),
        default="auto" if part == "TRAINING" else "none",
        help="where features are kept (%(default)s)",
    )
    machine.add_argument("--cache_dir", type=Path, default=Path("cache"), help="folder of features on disk (cache)")
    machine.add_argument("--cache_dtype", choices=("fp32", "fp16"), default="fp32", help="type of kept features")
    machine.add_argument(
        "--num_workers", type=count, default=min(4, os.cpu_count() or 1), help="image-reading processes"
    )
    machine.add_argument("--seed", type=count, default=111)


def owners_and_defaults(defaults: dict[str, object]) -> str:
    """What --help says of a flag, given its default in each method that has it: whose it is, and the defaults."""
    value = defaults.get("anomalyclip", next(iter(defaults.values())))
    of = [] if "anomalyclip" in defaults else [f"{', '.join(defaults)} only"]
    if value is not None and not isinstance(value, bool):
        others = {}
        for name, other in defaults.items():
            others.setdefault(show(other), []).append(name)
        names = [f"{', '.join(names)}: {other}" for other, names in others.items() if other != show(value)]
        of.append(f"({'; '.join([show(value), *names])})")
    return " ".join(of)


def settings_from(args: argparse.Namespace, part: str, checkpoint: dict | None = None) -> tuple[dict, dict]:
    """The method's SETTINGS, and its flags of `part` (TRAINING or TESTING).

    Settings are given by flags, else by the checkpoint, else they have the method's defaults. A flag that contradicts
    the checkpoint raises an InputError naming both values, a flag that the method does not have another. Weights files
    may have moved, so `pretrained` is not compared here but by content, see `weights_checksum`.
    """
    stored = checkpoint["settings"] if checkpoint else {}
    method = args.method or stored.get("method", "anomalyclip")
    if method != stored.get("method", method):
        raise InputError(f"--method {method} contradicts {args.checkpoint_path}, made with {stored['method']}")
    flags = methods.flags(method)
    own = flags["SETTINGS"] | flags[part]
    known = [methods.flags(name) for name in methods.names()]
    every = dict.fromkeys(flag for each in known for flag in each["SETTINGS"] | each[part])
    given = {flag: value for flag in every if (value := getattr(args, flag)) is not None}
    for flag in [flag for flag in given if flag not in own]:
        raise InputError(f"--{flag} is no flag of --method {method}; it has {', '.join(f'--{flag}' for flag in own)}")
    if "features_list" in given:
        given["features_list"] = tapped_layers(given["features_list"], args.feature_map_layer)
    for flag, value in given.items():
        if flag in flags["SETTINGS"] and flag != "pretrained" and stored.get(flag, value) not in (value, None):
            raise InputError(
                f"--{flag} {show(value)} contradicts {args.checkpoint_path}, made with {show(stored[flag])}"
            )
    settings = {"method": method} | flags["SETTINGS"] | stored
    settings |= {flag: value for flag, value in given.items() if flag in flags["SETTINGS"]}
    others = flags[part] | {flag: value for flag, value in given.items() if flag in flags[part]}
    if settings["model"] == "tiny":
        if "pretrained" in given:
            raise InputError(
                f"--pretrained {given['pretrained']} cannot be used with --model tiny, which has its own weights"
            )
        settings["pretrained"] = None
    elif "pretrained" in given and "model" not in stored | given:
        from AnomalyCLIP_lib.backbones import is_file_name

        if is_file_name(given["pretrained"]) and flags["SETTINGS"]["pretrained"] == "openai":
            settings["model"] = None  # its geometry is read from the file; OpenAI's activation goes without saying
    return settings, others


def show(value: object) -> str:
    """A flag's value as typed on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def tapped_layers(features_list: list[int], feature_map_layer: list[int]) -> list[int]:
    """Blocks whose maps are used: the released scripts leave out those before index feature_map_layer[0]."""
    first = feature_map_layer[0]
    if not 0 <= first < len(features_list):
        raise InputError(f"--feature_map_layer {first} leaves nothing of --features_list {show(features_list)}")
    return features_list[first:]


def load_method(
    settings: dict, others: dict, args: argparse.Namespace, device: str, checkpoint: dict | None = None
) -> Base:
    """The frozen model and the method on it, all random numbers seeded; completes `settings` (in place)."""
    import AnomalyCLIP_lib

    model = AnomalyCLIP_lib.load(
        settings["model"],
        settings["pretrained"],
        image_size=settings["image_size"],
        dpam_layer=settings.get("dpam_layer", 1),
        dpam_mode=settings.get("dpam_mode", "vv"),
        device=device,
        precision=args.precision,
    )
    set_seed(args.seed)
    settings["image_size"] = model.image_size
    if "dpam_layer" in settings:
        settings["dpam_layer"] = model.dpam_layer
    chosen = methods.method_class(settings["method"])
    if settings.get("features_list", ()) is None:
        settings["features_list"] = tapped_layers(chosen.default_layers(model.num_layers), args.feature_map_layer)
    both = settings | others
    try:
        method = chosen(model, both)
        if checkpoint and method.learner is not None:
            method.load(checkpoint["state"])
    except InputError as error:
        raise InputError(f"{args.checkpoint_path}: {error}" if checkpoint else str(error)) from None
    settings |= {key: both[key] for key in settings}
    return method


def weights_checksum(model: AnomalyCLIP) -> str:
    """sha256 over the backbone's weights: the same for the same weights, wherever their file lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: Path, method: str | None = None) -> dict:
    """A checkpoint of train.py or of a method's authors: {"prompt_learner": state dict, "settings": dict, ...}.

    The authors' files have no settings; some are then read from the tensors. `method` None: the one that the file was
    made with, else anomalyclip. The method's state dict is returned as "state".
    """
    import torch

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
    content = checkpoint if isinstance(checkpoint, dict) else {}
    settings = content.get("settings", {})
    settings = settings if isinstance(settings, dict) else {}
    stored = settings.get("method")
    if stored is not None and stored not in methods.names():
        raise InputError(f"{path} was made with --method {stored}, which this version does not have")
    chosen = stored or method or "anomalyclip"
    key = methods.method_class(chosen).STATE
    if key is None:
        raise InputError(f"--method {chosen} is not trained; leave out --checkpoint_path {path}")
    if not isinstance(content.get(key), dict):
        fits = [name for name in methods.names() if methods.method_class(name).STATE in content]
        hint = f"it looks like one of --method {fits[0]}" if fits else "give an epoch_N.pth"
        raise InputError(f'{path} is no checkpoint of --method {chosen}: no "{key}" in it; {hint}')
    try:
        sizes = methods.method_class(chosen).sizes(content[key])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return content | {"state": content[key], "settings": settings | sizes}
