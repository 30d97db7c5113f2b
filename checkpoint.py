"""Checkpoints, and the one door through which every script opens a method: flags, checkpoint, model, learner."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import methods
import parallel
from AnomalyCLIP_lib.errors import one_line, shown
from options import FLAGS, settings_from
from utils import InputError, atomic_path, environment, pick_precision, set_seed

if TYPE_CHECKING:
    import torch

    from dataset import AnomalyDataset
    from methods._base import Base

HUB_CONFIG, HUB_TENSORS = "config.json", "model.safetensors"  # the files of a checkpoint in a hub's form
HUB_KIND = "anomalyclip-repro"


def open_method(args: argparse.Namespace, part: str) -> tuple[Base, dict]:
    """The method that flags and checkpoint describe, on its device, everything seeded; and what to record of it.

    Args:
        args: flags of `options.add_flags`; of a script that tests, also checkpoint_path. Its precision "auto" is
            replaced by the one that is chosen, a name of a hub by the file on this machine.
        part: "TRAINING" or "TESTING", the flags that the method gets beside its settings.

    Returns:
        The method, its learner filled from the checkpoint if one is named; and the record: settings (complete, with
        the activation and the checksum of the weights), the part's flags under "training" or "testing", versions.

    Raises:
        InputError: whatever is wrong with flags, checkpoint, weights or device.
    """
    path = getattr(args, "checkpoint_path", None)
    if path:
        path = args.checkpoint_path = find_checkpoint(path)
    checkpoint = read_checkpoint(path, args.method) if path else None
    settings, options = settings_from(args, part, checkpoint)
    chosen = methods.method_class(settings["method"])
    check_use(chosen, settings, part, checkpoint is not None)

    import AnomalyCLIP_lib

    device = parallel.start(args.device)
    args.precision = pick_precision(args.precision, device)
    model = AnomalyCLIP_lib.load(
        settings["model"],
        settings["pretrained"],
        image_size=settings["image_size"],
        dpam_layer=settings.get("dpam_layer", 1),  # methods that do not know DPAM go without
        dpam_mode=settings.get("dpam_mode", "vv"),
        device=device,
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

        freezing = {"freezing": True} if device == "cpu" else None  # weights laid out once for the processor
        method.encode = torch.compile(method.encode, options=freezing)
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


def find_checkpoint(path: str | os.PathLike) -> Path:
    """The file of a checkpoint: itself, the tensors in a hub's folder, or those of hf-hub:OWNER/NAME, downloaded.

    Raises InputError for a folder that is none, and a hub that does not answer.
    """
    name = os.fspath(path)
    if name.startswith("hf-hub:"):
        from AnomalyCLIP_lib.backbones import hub_file

        repository = name.removeprefix("hf-hub:")
        try:
            hub_file(repository, HUB_CONFIG)
            return hub_file(repository, HUB_TENSORS)
        except Exception as error:  # the hub raises many kinds
            raise InputError(
                f"checkpoint {shown(name)} cannot be had ({one_line(error)}); check its name and the network, or give "
                "a file or folder"
            ) from None
    if os.path.isdir(name):
        missing = [file for file in (HUB_CONFIG, HUB_TENSORS) if not os.path.isfile(os.path.join(name, file))]
        if missing:
            raise InputError(f"checkpoint {shown(name)}: a folder without {missing[0]}; give an epoch_N.pth in it")
        return Path(name) / HUB_TENSORS
    return Path(name)


def read_hub_folder(tensors: Path) -> dict:
    """The checkpoint, as train.py writes them, of a hub's folder, given its tensors; its text features are left out."""
    from AnomalyCLIP_lib.weights import read_tensor_file

    file = tensors.with_name(HUB_CONFIG)
    again = "get the whole folder again"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown(file)}: cannot be read as JSON ({one_line(error)}); {again}") from None
    if not isinstance(config, dict) or config.get("kind") != HUB_KIND or not isinstance(config.get("state"), str):
        raise InputError(f"{shown(file)}: is not the configuration of a checkpoint of this program; {again}")
    prefix, content = f"{config['state']}.", read_tensor_file(tensors, "a checkpoint", again)
    state = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    return {config["state"]: state, "settings": config.get("settings"), "training": config.get("training")}


def read_checkpoint(path: Path, method: str | None = None) -> dict:
    """A checkpoint of train.py or of a method's authors: {"prompt_learner": state dict, "settings": dict, ...}.

    The authors' files have no settings; some are then read from the tensors. `method` None: the one that the file was
    made with, else anomalyclip. The method's state dict is returned as "state". Nothing in the file is executed.
    """
    if not path.is_file():
        problem = "is not a file" if os.path.lexists(path) else "does not exist"
        raise InputError(f"checkpoint {shown(path)} {problem}; check --checkpoint_path, or train one with train.py")

    from AnomalyCLIP_lib.weights import check_tensors, read_tensor_file

    if path.name == HUB_TENSORS and path.with_name(HUB_CONFIG).is_file():
        checkpoint = read_hub_folder(path)
    else:
        checkpoint = read_tensor_file(path, "a checkpoint", "give an epoch_N.pth of train.py or of the authors")
    content = checkpoint if isinstance(checkpoint, dict) else {}
    settings = content.get("settings", {})
    stored = settings.get("method") if isinstance(settings, dict) else None
    if stored is not None and stored not in methods.names():
        named = shown(str(stored))[:60]
        raise InputError(f"{shown(path)} was made with --method {named}, which this version does not have")
    chosen = stored or method or "anomalyclip"
    try:
        check_settings(settings, chosen)
    except ValueError as error:
        raise InputError(f"{shown(path)} cannot be used: {error}; give an unchanged epoch_N.pth") from None
    key = methods.method_class(chosen).STATE
    if key is None:
        raise InputError(f"--method {chosen} is not trained; leave out --checkpoint_path {path}")
    if not isinstance(content.get(key), dict):
        fits = [name for name in methods.names() if methods.method_class(name).STATE in content]
        hint = f"it looks like one of --method {fits[0]}" if fits else "give an epoch_N.pth"
        raise InputError(f'{path} is not a checkpoint of --method {chosen}: no "{key}" in it; {hint}')
    try:
        check_tensors(content[key])
    except ValueError as error:
        raise InputError(f"{shown(path)}: {error}") from None
    try:
        sizes = methods.method_class(chosen).sizes(content[key])
    except InputError as error:
        alike = [name for name in methods.names() if methods.method_class(name).STATE == key]
        fits = [name for name in alike if stored is None and is_of(name, content[key])]
        hint = f"; it looks like one of --method {fits[0]}" if fits else ""
        raise InputError(f"{shown(path)}: {error}{hint}") from None
    return content | {"state": content[key], "settings": settings | sizes}


def is_of(method: str, state: dict[str, torch.Tensor]) -> bool:
    """Whether a state dict can be a method's."""
    try:
        methods.method_class(method).sizes(state)
    except InputError:
        return False
    return True


def check_settings(settings: object, method: str) -> None:
    """ValueError if what a checkpoint holds as "settings" is anything but settings that the method can have."""
    if not isinstance(settings, dict):
        raise ValueError("its settings are not a dict")
    defaults = methods.flags(method)["SETTINGS"]
    for name, value in settings.items():
        if name in ("method", "weights_sha256", "activation"):
            sound = isinstance(value, str)
        elif name in defaults:
            sound = is_setting(name, value, defaults[name])
        else:
            raise ValueError(f"it holds the setting {name!r:.60}, which --method {method} does not have here")
        if not sound:
            raise ValueError(f"it holds {value!r:.60} as {name}")


def is_setting(name: str, value: object, default: object) -> bool:
    """Whether a method's setting, which its flag of this name would set, can have this value."""
    options = FLAGS.get(name, {"type": str if default is None else type(default)})
    if value is None:
        return default is None or name in ("model", "pretrained")
    if isinstance(default, bool):
        return isinstance(value, bool)
    if "choices" in options:
        return isinstance(value, str) and value in options["choices"]
    values = value if "nargs" in options else [value]
    if not isinstance(values, list) or not values:
        return False
    kind = options.get("type", str)
    kinds = str if kind is str else int if isinstance(default, int) or default is None else (int, float)
    if not all(isinstance(each, kinds) and not isinstance(each, bool) for each in values):
        return False
    try:
        return all(kind(str(each)) == each for each in values)
    except (ValueError, argparse.ArgumentTypeError):
        return False


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies in a run folder."""
    return folder / f"epoch_{epoch}.pth"


def write_checkpoint(
    folder: Path, epoch: int, losses: dict, method: Base, optimizer: torch.optim.Optimizer | None, record: dict
) -> None:
    """Write the checkpoint of an epoch: the learner under STATE, the optimiser's state, mean losses and `record`."""
    import torch

    moments = optimizer.state_dict() if optimizer else {"state": {}, "param_groups": []}
    state = {method.STATE: method.learner.state_dict(), "optimizer": moments, "epoch": epoch, "losses": losses}
    content = io.BytesIO()  # torch.save into a file hides what is wrong with a full disk
    torch.save(state | record, content)
    with atomic_path(checkpoint_path(folder, epoch)) as path:
        path.write_bytes(content.getbuffer())


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
    checkpoint = read_checkpoint(path, record["settings"]["method"]) | {"path": path}
    check_resumable(checkpoint, epochs[path])
    for key, before, value in contradictions(checkpoint, record):
        raise InputError(
            f"--resume: {key} is {value!r} now but was {before!r} in {path}; repeat the first run's flags, or "
            "give another --save_path"
        )
    return checkpoint


def contradictions(checkpoint: dict, record: dict) -> Iterator[tuple[str, object, object]]:
    """What a checkpoint holds otherwise than a `record` of settings and training: name, its value, the record's.

    What an older version did not record is not compared.
    """
    for part in ("settings", "training"):
        for key, value in record[part].items():
            before = checkpoint[part].get(key, value)
            if before != value:
                yield key, before, value


def delete_older(folder: Path, epoch: int, keep: int, record: dict) -> None:
    """Delete this run's checkpoints but for that of `epoch`, which is there, and the `keep` - 1 before it.

    Of this run is an epoch_N.pth if N is below `epoch` and the file says that it was made with this `record`.
    """
    with open(checkpoint_path(folder, epoch), "rb+") as file:
        os.fsync(file.fileno())  # it is on the disk, not merely on its way, before others go
    numbers = {path.stem.removeprefix("epoch_") for path in folder.glob("epoch_*.pth")}
    earlier = {int(number) for number in numbers if number.isdecimal() and int(number) < epoch}
    for number in sorted(earlier, reverse=True)[keep - 1 :]:
        path = checkpoint_path(folder, number)
        if is_of_run(path, number, record):
            path.unlink()


def is_of_run(path: Path, epoch: int, record: dict) -> bool:
    """Whether a file is the checkpoint of an epoch that was made with this `record`."""
    if path.is_symlink():
        return False
    try:
        checkpoint = read_checkpoint(path)
    except InputError:
        return False
    training = checkpoint.get("training")
    if not isinstance(training, dict) or checkpoint.get("epoch") != epoch:
        return False
    return all(key == "data_sets" for key, _, _ in contradictions(checkpoint, record))  # folders may be renamed


def check_resumable(checkpoint: dict, epoch: int) -> None:
    """InputError if a checkpoint is not one that training can continue from."""
    training = checkpoint.get("training")
    simple = isinstance(training, dict) and all(
        value is None or isinstance(value, str | int | float) for value in training.values()
    )
    if not simple or type(checkpoint.get("epoch")) is not int or checkpoint["epoch"] != epoch:
        raise InputError(f"{checkpoint['path']} holds no training state to resume from; give another --save_path")


def resume(checkpoint: dict, method: Base, optimizer: torch.optim.Optimizer | None) -> None:
    """Fill learner and optimiser from a checkpoint of `newest_checkpoint`; InputError if they do not fit."""
    try:
        method.load(checkpoint["state"])
        if optimizer is None:
            return
        groups = optimizer.state_dict()["param_groups"]
        state = optimizer_state(checkpoint.get("optimizer"), [p for g in optimizer.param_groups for p in g["params"]])
    except ValueError as error:
        raise InputError(f"{checkpoint['path']}: {error}; give another --save_path") from None
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def optimizer_state(stored: object, parameters: list[torch.nn.Parameter]) -> dict:
    """The optimiser's own numbers of each parameter; ValueError if they are not such numbers."""
    from AnomalyCLIP_lib.weights import check_tensors

    state = stored.get("state") if isinstance(stored, dict) else None
    if not isinstance(state, dict) or set(state) != set(range(len(parameters))):
        raise ValueError("its optimizer is not that of this training")
    names = state[0].keys() if isinstance(state[0], dict) else ()
    for number, values in state.items():
        if not isinstance(values, dict) or values.keys() != names:
            raise ValueError("its optimizer is not that of this training")
        check_tensors(values)
        for name, value in values.items():
            if value.shape not in ((), parameters[number].shape) or not value.is_floating_point():
                raise ValueError(f"{name!r:.60} of its optimizer does not fit")
    return state


def file_sha256(path: Path) -> str:
    """Checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
