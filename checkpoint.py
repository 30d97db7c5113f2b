"""Checkpoints, and the one door through which every script opens a method: flags, checkpoint, model, learner."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import methods
import parallel
from AnomalyCLIP_lib.errors import one_line
from options import settings_from
from utils import InputError, atomic_path, environment, set_seed

if TYPE_CHECKING:
    import torch

    from dataset import AnomalyDataset
    from methods._base import Base


def open_method(args: argparse.Namespace, part: str) -> tuple[Base, dict]:
    """The method that flags and checkpoint describe, on its device, everything seeded; and what to record of it.

    Args:
        args: flags of `options.add_flags`; of a script that tests, also checkpoint_path.
        part: "TRAINING" or "TESTING", the flags that the method gets beside its settings.

    Returns:
        The method, its learner filled from the checkpoint if one is named; and the record: settings (complete, with
        the activation and the checksum of the weights), the part's flags under "training" or "testing", versions.

    Raises:
        InputError: whatever is wrong with flags, checkpoint, weights or device.
    """
    path = getattr(args, "checkpoint_path", None)
    checkpoint = read_checkpoint(path, args.method) if path else None
    settings, options = settings_from(args, part, checkpoint)
    chosen = methods.method_class(settings["method"])
    check_use(chosen, settings, part, checkpoint is not None)

    import AnomalyCLIP_lib

    model = AnomalyCLIP_lib.load(
        settings["model"],
        settings["pretrained"],
        image_size=settings["image_size"],
        dpam_layer=settings.get("dpam_layer", 1),  # methods that do not know DPAM go without
        dpam_mode=settings.get("dpam_mode", "vv"),
        device=parallel.start(args.device),
        precision=args.precision,
    )
    parallel.set_threads(args.threads, model)
    set_seed(args.seed)
    settings = chosen.complete(settings, model) | {"weights_sha256": model.weights_sha256}
    if checkpoint:
        check_backbone(path, checkpoint["settings"], settings)
    try:
        method = chosen(model, settings | options)
        if checkpoint:
            method.load(checkpoint["state"])
    except InputError as error:
        raise InputError(f"{path}: {error}" if checkpoint else str(error)) from None
    if (method.learner is None) == chosen.learns(settings):
        raise InputError(f"methods/{settings['method']}.py: a method has a learner if and only if its class has STATE")
    if args.compile:
        import torch

        method.encode = torch.compile(method.encode)
    return method, {"settings": settings, part.lower(): options, "versions": environment()}


def check_training(args: argparse.Namespace, dataset: AnomalyDataset) -> list[str]:
    """What there is to warn of before these flags train on this data set; InputError if they cannot.

    Needs no model, so that nobody waits for weights to learn of it.
    """
    settings, training = settings_from(args, "TRAINING")
    return methods.method_class(settings["method"]).check_training(settings | training, dataset)


def check_use(chosen: type[Base], settings: dict, part: str, has_checkpoint: bool) -> None:
    """InputError if there is nothing to train, or if testing lacks a checkpoint or has one too many."""
    method = f"--method {settings['method']}"
    learns = chosen.learns(settings)
    if part == "TRAINING" and not learns:
        if chosen.STATE is None and methods.flags(settings["method"])[part]:
            raise InputError(f"{method} has flags for training but no STATE, its name in checkpoints; add it to Method")
        reason = "has nothing to train" if chosen.STATE is None else "has nothing to train with these prompts"
        raise InputError(f"{method} {reason}; give it to test.py without a checkpoint")
    if part == "TESTING" and learns and not has_checkpoint:
        instead = f", or {chosen.UNTRAINED}, which needs none" if chosen.UNTRAINED else ""
        raise InputError(f"{method} needs --checkpoint_path FILE; train one with train.py{instead}")
    if part == "TESTING" and has_checkpoint and not learns:
        raise InputError(f"{method} is not trained with these flags; leave out --checkpoint_path")


def check_backbone(path: Path, stored: dict, settings: dict) -> None:
    """InputError if a checkpoint was trained on another backbone, of which its name and path tell too little."""
    named = settings["pretrained"] or settings["model"]
    if stored.get("weights_sha256", settings["weights_sha256"]) != settings["weights_sha256"]:
        raise InputError(
            f"{path} was trained on other weights than {named} holds; give the file it was trained with as "
            "--pretrained, or train again"
        )
    if stored.get("activation", settings["activation"]) != settings["activation"]:
        raise InputError(
            f"{path} was trained with {stored['activation']}, but {named} is run with {settings['activation']} here; "
            "give --model and --pretrained as in its training (a weights file without --model has QuickGELU)"
        )


def read_checkpoint(path: Path, method: str | None = None) -> dict:
    """A checkpoint of train.py or of a method's authors: {"prompt_learner": state dict, "settings": dict, ...}.

    The authors' files have no settings; some are then read from the tensors. `method` None: the one that the file was
    made with, else anomalyclip. The method's state dict is returned as "state". Nothing in the file is executed.
    """
    import torch

    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist; check --checkpoint_path, or train one with train.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile pickles fail in many ways; none of them is opened
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors, or is not a torch file" if refused else one_line(error)
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
        raise InputError(f'{path} is not a checkpoint of --method {chosen}: no "{key}" in it; {hint}')
    try:
        sizes = methods.method_class(chosen).sizes(content[key])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return content | {"state": content[key], "settings": settings | sizes}


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies in a run folder."""
    return folder / f"epoch_{epoch}.pth"


def write_checkpoint(
    folder: Path, epoch: int, losses: dict, method: Base, optimizer: torch.optim.Optimizer, record: dict
) -> None:
    """Write the checkpoint of an epoch: the learner under STATE, the optimiser's state, mean losses and `record`."""
    import torch

    state = {method.STATE: method.learner.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"epoch": epoch, "losses": losses}
    with atomic_path(checkpoint_path(folder, epoch)) as path, open(path, "wb") as file:
        torch.save(state | record, file)


def newest_checkpoint(folder: Path, record: dict, resume: bool) -> dict | None:
    """The newest checkpoint of a run folder, to continue from, or None if there is none.

    InputError if there is one and the run is not to be resumed, or if it was made with another `record`.
    """
    numbers = {path: path.stem.removeprefix("epoch_") for path in folder.glob("epoch_*.pth")}
    epochs = {path: int(number) for path, number in numbers.items() if number.isdecimal()}
    if not epochs:
        return None
    path = max(epochs, key=epochs.get)
    if not resume:
        raise InputError(f"{path} exists already; add --resume to continue from it, or give another --save_path")
    checkpoint = read_checkpoint(path, record["settings"]["method"])
    if "optimizer" not in checkpoint:
        raise InputError(f"{path} holds no training state to resume from; give another --save_path")
    for part in ("settings", "training"):
        for key, value in record[part].items():
            before = checkpoint[part].get(key, value)  # what an older version did not record is not compared
            if before != value:
                raise InputError(
                    f"--resume: {key} is {value} now but was {before} in {path}; repeat the first run's flags, or give "
                    "another --save_path"
                )
    return checkpoint


def file_sha256(path: Path) -> str:
    """Checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
