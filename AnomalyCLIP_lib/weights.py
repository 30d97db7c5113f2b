"""Files of weights and checkpoints as tensors. Whatever such a file holds, nothing in it is executed."""

from __future__ import annotations

import collections
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from .errors import InputError, impostor, one_line, shown

MOST_NAMES = 100_000  # of modules in a file
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
KINDS = {
    "visual.layer1.": "a ResNet CLIP, which has no class token or V-V attention",
    "visual.trunk.": "a CLIP with one of timm's towers (SigLIP, EVA, ConvNeXt, ...)",
    "visual.attn_pool.": "a CLIP with an attentional pooler (CoCa)",
    "logit_bias": "a SigLIP",
    "vision_model.": "a CLIP with the names of Hugging Face transformers; convert it to open_clip's names",
}
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def read_state_dict(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Tensors of a weights file under open_clip's names, and whether it is an original OpenAI file.

    Raises InputError for a file that is not one, is damaged, or holds no CLIP ViT.
    """
    if not path.is_file():
        problem = "is not a file" if os.path.lexists(path) else "does not exist"
        raise InputError(f"weights file {shown(path)} {problem}; check the path, or name an open_clip tag")
    archive = is_torchscript(path)
    content = read_tensor_file(path, "weights", "download it again, or save a plain state dict")
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{shown(path)} is not a state dict (names with tensors); save model.state_dict()")
    from_openai = archive or "input_resolution" in content
    state = {}
    for name, value in content.items():
        if name.rpartition(".")[2] not in NO_WEIGHTS:
            state[name.removeprefix("module.").removeprefix("text.")] = value
    for prefix, kind in KINDS.items():
        if any(name.startswith(prefix) for name in state):
            raise InputError(f"{shown(path)} cannot be used: it holds {kind}")
    if "visual.conv1.weight" not in state or "text_projection" not in state:
        raise InputError(f"{shown(path)} holds no CLIP ViT with OpenAI's or open_clip's names (no visual.conv1.weight)")
    try:
        check_tensors(state)
    except ValueError as error:
        raise InputError(f"{shown(path)} cannot be used as weights: {error}; download it again") from None
    return state, from_openai


def read_tensor_file(path: Path, what: str, advice: str) -> object:
    """What a file of torch or safetensors holds, on the CPU; of a TorchScript archive its state dict.

    Raises InputError, which says `what` was expected and gives the advice.
    """
    instead = impostor(path)
    if instead:
        raise InputError(f"{shown(path)} is {instead}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            return read_archive(path)
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{shown(path)} is not opened (it holds more than tensors, or is no file of torch); {advice}"
        ) from None
    except Exception as error:  # damaged and hostile files fail in many ways
        raise InputError(f"{shown(path)} cannot be read as {what} ({one_line(error)}); {advice}") from None


def check_archive(path: Path) -> None:
    """ValueError if one of the parts of a file of torch is damaged: torch itself does not look at their checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_sizes(archive, path)
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of its part {damaged!r} is wrong")


def check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    """ValueError if the parts are larger than the file: torch does not compress them."""
    if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a zip with code inside) rather than a pickled state dict."""
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
    except Exception:  # what is wrong with a file is said when it is read
        return False


def read_archive(path: Path) -> dict[str, torch.Tensor]:
    """State dict of a TorchScript archive.

    torch.jit.load would run the archive's code, which can write files. Here only the data is read: every module
    becomes an empty object that holds its attributes.
    """
    with zipfile.ZipFile(path) as archive:
        check_sizes(archive, path)
        (pickled,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        with archive.open(pickled) as file:
            root = ArchiveUnpickler(file, archive, pickled.removesuffix(".pkl")).load()
    return tensors_of(root)


class Module:
    """Stands for any module of a TorchScript archive; its attributes are all that is kept."""

    def __init__(self, *_: object) -> None:
        self.attributes: object = {}

    def __setstate__(self, state: object) -> None:
        self.attributes = state


class ArchiveUnpickler(pickle._Unpickler):  # the one written in Python: that in C lets a few bytes take all memory
    """Reads the data of a TorchScript archive; what is neither a tensor nor a module is refused."""

    def __init__(self, file, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.archive, self.folder = archive, folder
        self.storages: dict[tuple, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Module", (Module,), {})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: rebuild_tensor(*parts[:4]),
            ("torch._utils", "_rebuild_tensor"): lambda *parts: rebuild_tensor(*parts[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        if module == "torch.jit._pickle":  # lists and dicts with the type of what is in them
            return lambda data, *_: data
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, key: tuple) -> torch.Tensor:
        """The values of a storage, one-dimensional."""
        kind, dtype, name, _, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(name, str):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if (name, dtype) not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}/{name}"))
            values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self.storages[name, dtype] = values[:count]
        return self.storages[name, dtype]


def rebuild_tensor(values: torch.Tensor, start: int, size: tuple, strides: tuple) -> torch.Tensor:
    """A tensor from the values of its storage. as_strided refuses what lies outside of them."""
    count = 1
    for length in size:
        count *= length
    if count > len(values):
        raise ValueError("a tensor is larger than its values")
    return values.as_strided(size, strides, start)


def tensors_of(root: object) -> dict[str, torch.Tensor]:
    """The tensors of a module and of those in it, by name; ValueError if there is no end to them."""
    tensors: dict[str, torch.Tensor] = {}
    waiting = [("", root)]
    for _ in range(MOST_NAMES):
        if not waiting:
            return tensors
        prefix, module = waiting.pop()
        attributes = module.attributes if isinstance(module, Module) else None
        for name, value in attributes.items() if isinstance(attributes, dict) else ():
            if isinstance(value, torch.Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, Module):
                waiting.append((f"{prefix}{name}.", value))
    raise ValueError(f"it holds more than {MOST_NAMES} modules")


def check_tensors(state: dict) -> None:
    """ValueError if a state dict holds anything but names with finite floating point or integer tensors.

    Of each tensor all values are there: none is sparse, quantised, on another device or one value many times over.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{name!r:.60} is not the name of a tensor")
        named = shown(name)[:100]
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{named} is not a tensor but {type(value).__name__}")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"{named} is not a plain tensor")
        if value.dtype.is_complex or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"{named} is not a plain tensor")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{named} holds values that are not finite")
