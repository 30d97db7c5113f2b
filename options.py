"""Command-line flags of the scripts, and how they and a checkpoint's settings become one set of settings."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import methods
from utils import (
    InputError,
    nonempty_path,
    nonnegative_float,
    nonnegative_int,
    positive_int,
    share,
    small_float,
    small_int,
)

PROMPTS = ("object-agnostic", "object-aware", "hand-written", "hand-written-object")


# Flags that methods may have. Their defaults stand in methods/NAME.py; a method may name flags that are not listed
# here, these get the type of their default.
FLAGS = {
    "model": {"help": "open_clip model, hf-hub:OWNER/NAME, or tiny for the embedded one"},
    "pretrained": {"help": "open_clip tag or weights file"},
    "image_size": {"type": small_int, "help": "pixels; a multiple of the patch size (518 for patch 14)"},
    "features_list": {
        "type": small_int,
        "nargs": "+",
        "metavar": "N",
        "help": "blocks that are tapped, counted from 1 (6 12 18 24; clip, clip_ac, coop, glocalclip: the last; "
        "uniadet: 12 15 18 21 24)",
    },
    "dpam_layer": {"type": small_int, "help": "DPAM beside the last N - 1 blocks; 1: off (20 for 24 blocks; mrad: 24)"},
    "dpam_mode": {"choices": ("vv", "qq", "kk"), "help": "what DPAM multiplies"},
    "prompt": {"choices": PROMPTS, "help": "kind of text prompts"},
    "n_ctx": {"type": small_int, "help": "learned context vectors per prompt"},
    "ab_ctx": {"type": small_int, "help": "further ones of an abnormal prompt"},
    "depth": {"type": small_int, "help": "text blocks with learned tokens; 1: only the prompt (9)"},
    "t_n_ctx": {"type": small_int, "help": "learned tokens per deep text block"},
    "no_ln_post": {"help": "image feature without ln_post, as in AnomalyCLIP"},
    "keep_underscores": {"help": "class names with underscores in the prompts"},
    "raw_mean": {"help": "mean of the prompts' features, not of their unit vectors"},
    "csc": {"help": "a learned context for each of the two states"},
    "training_free": {"help": "the memory of the training data alone; nothing is learned"},
    "quick_gelu": {"help": "the weights' own activation also at other image sizes than theirs"},
    "epoch": {"type": positive_int, "help": "passes over the data set"},
    "learning_rate": {"type": nonnegative_float, "help": "of the optimiser"},
    "batch_size": {"type": positive_int, "help": "images per step, of all processes together"},
    "mosaics": {"type": share, "help": "share of the images that are replaced by mosaics of four (MVTec AD: 0.2)"},
    "lambda_local": {"type": nonnegative_float, "help": "weight of the local loss"},
    "lambda_glocal": {"type": nonnegative_float, "help": "weight of what pulls global and local prompts together"},
    "margin": {"type": nonnegative_float, "help": "distance up to which that loss pushes other states away"},
    "lambda_alignment": {"type": nonnegative_float, "help": "weight of what pulls patches of one kind together"},
    "gradient": {"choices": ("released", "written"), "help": "of the released code, or of the loss as written"},
    "hide_patches": {
        "type": share,
        "help": "in training each patch sees this share of the memory, the entries least like it",
    },
    "hide_images": {"type": share, "help": "the same of images"},
    "no_global_loss": {"help": "leave out the image-level cross-entropy"},
    "no_local_loss": {"help": "leave out focal and dice loss"},
    "sigma": {"type": small_float, "help": "Gaussian filter of the maps, pixels"},
    "score_share": {"type": share, "help": "share of the class token in the image score; the rest is the map's"},
    "k_shot": {
        "type": nonnegative_int,
        "help": "normal images of each class, from the train split, that images are compared with",
    },
}


def add_flags(parser: argparse.ArgumentParser, part: str, cache: str | None = None) -> None:
    """Flags of all methods (SETTINGS and `part`: TRAINING or TESTING) and of the machine; None means: not given.

    cache: default of --cache; None for scripts that keep no features.
    """
    known = {name: methods.flags(name) for name in methods.names()}
    parser.add_argument("--method", choices=known, help="method of the paper's tables (anomalyclip)")
    for title, section in (("model and prompts", "SETTINGS"), (part.lower(), part)):
        group = parser.add_argument_group(title)
        defaults = {}  # of each flag, by method
        for name, flags in known.items():
            for flag, default in flags[section].items():
                defaults.setdefault(flag, {})[name] = default
        listed = [flag for flag in FLAGS if flag in defaults]
        for flag in [*listed, *sorted(defaults.keys() - FLAGS.keys())]:
            default = next(iter(defaults[flag].values()))
            options = FLAGS.get(flag, {"help": ""})
            options = options | {"help": f"{options['help']} {shown_defaults(defaults[flag])}".strip()}
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
                help="only the first value matters: maps before this place in features_list (0-based) are left out",
            )
    add_machine_flags(parser, cache)


def add_reading_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Flags of how a data set is read; several: there may be more than one, and --meta becomes a list."""
    parser.add_argument(
        "--meta",
        type=nonempty_path,
        nargs="+" if several else None,
        metavar="FILE",
        help="description of the data set (its root's meta.json)" + ("; of several, one each" if several else ""),
    )
    parser.add_argument(
        "--read_as",
        choices=("viewer", "released"),
        default="viewer",
        help="images as a viewer shows them, or as the authors' code reads them (viewer)",
    )


def add_machine_flags(parser: argparse.ArgumentParser, cache: str | None) -> None:
    """Flags of the machine, which results hardly depend on; `cache` as in `add_flags`."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cuda, mps or cpu (the best there is)")
    machine.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "auto"),
        default="fp32",
        help="of the frozen vision tower; auto: bf16 where the hardware has it (fp32)",
    )
    machine.add_argument("--compile", action="store_true", help="torch.compile the frozen vision tower")
    if cache is not None:
        machine.add_argument(
            "--cache",
            choices=("auto", "ram", "disk", "none"),
            default=cache,
            help="where features are kept (%(default)s)",
        )
        machine.add_argument(
            "--cache_dir", type=nonempty_path, default=Path("cache"), help="folder of kept features (cache)"
        )
        machine.add_argument("--cache_dtype", choices=("fp32", "fp16"), default="fp32", help="their type (fp32)")
    machine.add_argument(
        "--num_workers",
        type=nonnegative_int,
        default=min(4, os.cpu_count() or 1),
        help="image-reading processes (4, or as many as there are cores)",
    )
    machine.add_argument("--threads", type=positive_int, help="of the CPU (1 for a small tower, else torch's own)")
    machine.add_argument("--seed", type=nonnegative_int, default=111, help="of everything that is random (111)")


def shown_defaults(defaults: dict[str, object]) -> str:
    """What --help adds to a flag, given its default in each method that has it: the default, or whose flag it is."""
    main = defaults.get("anomalyclip")
    groups = {}  # methods by what there is to say of them
    for name, default in defaults.items():
        told = "" if default is None or isinstance(default, bool) else show(default)
        if "anomalyclip" not in defaults or (told and default != main):
            groups.setdefault(told, []).append(name)
    parts = [] if main is None or isinstance(main, bool) else [show(main)]
    parts += [", ".join(names) + (f": {told}" if told else "") for told, names in groups.items()]
    return f"({'; '.join(parts)})" if parts else ""


def show(value: object) -> str:
    """A flag's value as typed on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def settings_from(args: argparse.Namespace, part: str, checkpoint: dict | None = None) -> tuple[dict, dict]:
    """The method's SETTINGS, and its flags of `part` (TRAINING or TESTING).

    Settings are given by flags, else by the checkpoint, else they have the method's defaults; None stands where a
    default depends on the model, see `Base.complete`. A flag that contradicts the checkpoint raises an InputError
    naming both values, and a flag that the method lacks raises one as well. Weights files may have moved, so
    `pretrained` is not compared here but by content, see `checkpoint.open_method`.
    """
    stored = checkpoint["settings"] if checkpoint else {}
    method = args.method or stored.get("method", "anomalyclip")
    if method != stored.get("method", method):
        raise InputError(f"--method {method} contradicts {args.checkpoint_path}, made with {stored['method']}")
    flags = methods.flags(method)
    given = given_flags(args, part, method)
    first_map = getattr(args, "feature_map_layer", [0])[0]
    if "features_list" in given:
        given["features_list"] = methods.tapped_blocks(given["features_list"], first_map)
    for flag, value in given.items():
        compared = flag in flags["SETTINGS"] and flag != "pretrained"
        if compared and stored.get(flag) is not None and stored[flag] != value:
            raise InputError(
                f"--{flag} {show(value)} contradicts {args.checkpoint_path}, made with {show(stored[flag])}"
            )
    settings = {"method": method} | flags["SETTINGS"] | stored
    settings |= {flag: value for flag, value in given.items() if flag in flags["SETTINGS"]}
    if settings.get("features_list", ()) is None:
        settings["feature_map_layer"] = first_map
    if settings["model"] == "tiny":
        if "pretrained" in given:
            raise InputError(
                f"--pretrained {given['pretrained']} cannot be used with --model tiny, which has its own weights"
            )
        settings["pretrained"] = None
    elif str(settings["model"]).startswith("hf-hub:"):
        settings["pretrained"] = given.get("pretrained", stored.get("pretrained"))
    elif "pretrained" in given and "model" not in stored | given:
        from AnomalyCLIP_lib.backbones import is_file_name

        if is_file_name(given["pretrained"]) and flags["SETTINGS"]["pretrained"] == "openai":
            settings["model"] = None  # the geometry is read from the file, and QuickGELU is assumed, as in OpenAI's
    return settings, flags[part] | {flag: value for flag, value in given.items() if flag in flags[part]}


def given_flags(args: argparse.Namespace, part: str, method: str) -> dict:
    """The flags of methods that were given, by name; InputError for one that `method` lacks."""
    known = [methods.flags(name) for name in methods.names()]
    every = dict.fromkeys(flag for flags in known for flag in flags["SETTINGS"] | flags[part])
    given = {flag: getattr(args, flag) for flag in every if getattr(args, flag, None) is not None}
    own = methods.flags(method)["SETTINGS"] | methods.flags(method)[part]
    foreign = [flag for flag in given if flag not in own]
    if foreign:
        listed = ", ".join(f"--{flag}" for flag in own)
        raise InputError(f"--{foreign[0]} is not a flag of --method {method}, which has {listed}; leave it out")
    return given
