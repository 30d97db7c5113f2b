"""Loading CLIP weights: open_clip tags, OpenAI's archives, plain state dicts, and the embedded tiny backbone."""

import contextlib
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import open_clip
import torch
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils import InputError, one_line

from .model import AnomalyCLIP

TINY_FOLDER = Path(__file__).parent.parent / "checkpoints" / "tiny"
VOCABULARY = 49408
SUFFIXES = (".pt", ".pth", ".safetensors")


def load(
    name: str | None = None,
    pretrained: str | os.PathLike | None = None,
    image_size: int | None = None,
    dpam_layer: int | None = None,
    dpam_mode: str = "vv",
    device: str = "cpu",
    precision: str = "fp32",
) -> AnomalyCLIP:
    """Load a frozen CLIP as AnomalyCLIP's backbone.

    Args:
        name: an open_clip model such as "ViT-L-14-336", or "tiny", the backbone that comes with this repository.
            With a file for `pretrained` it may be None: the geometry is then read from the weights (heads are
            width / 64 and the activation QuickGELU, as in OpenAI's models).
        pretrained: an open_clip tag ("openai", ...), or a file: OpenAI's TorchScript archive or a state dict
            (.pt, .pth, .safetensors) with OpenAI's or open_clip's names.
        image_size: S in pixels, a multiple of the patch size; default 518 for patch 14, else the tower's own.
        dpam_layer: n: DPAM replaces the attention of the last n - 1 blocks; 1: no DPAM. Default 20 for 24 blocks and
            the same share of the blocks for other depths.
        dpam_mode: "vv", "qq" or "kk".
        device: a torch device.
        precision: "fp32", "bf16" or "fp16": of the vision tower's matrix products (torch.autocast).

    Raises:
        InputError: unknown names, towers that cannot be served, weights that are missing, broken or do not fit.
    """
    if precision != "fp32" and not torch.amp.is_autocast_available(torch.device(device).type):
        raise InputError(f"precision {precision} is not available on {device} with torch {torch.__version__}; use fp32")
    if name == "tiny":
        config, path = read_tiny_config(), TINY_FOLDER / "model.safetensors"
        if pretrained is not None:
            raise InputError(f"model 'tiny' has its own weights; leave out pretrained ({pretrained})")
    elif pretrained is None:
        raise InputError(f"no weights named for model {name}: give an open_clip tag such as 'openai', or a file")
    elif is_file_name(pretrained):
        config, path = None if name is None else read_config(name), Path(pretrained)
    elif name is None:
        raise InputError(f"pretrained {str(pretrained)!r} is no file; an open_clip tag needs a model name beside it")
    else:
        config = read_config(name)
        path, config["quick_gelu"], image_norm = find_tagged_weights(name, str(pretrained))
        config["image_norm"] = image_norm

    state, from_openai = read_state_dict(path)
    if config is None:
        config = config_from_state_dict(state, path)
    elif from_openai:
        config["quick_gelu"] = True
    norm = config.pop("image_norm", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = open_clip.CLIP(**config)
    load_weights(clip, state, f"{path} does not fit model {name}" if name else f"{path} is incomplete")
    patch, native = clip.visual.patch_size[0], clip.visual.image_size[0]
    image_size = image_size or (518 if patch == 14 else native)
    tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
    return AnomalyCLIP(clip, tokenizer, image_size, dpam_layer, dpam_mode, **norm, precision=precision).to(device)


def is_file_name(pretrained: str | os.PathLike) -> bool:
    """Whether `pretrained` means a file rather than an open_clip tag."""
    return os.path.exists(pretrained) or str(pretrained).endswith(SUFFIXES) or os.sep in str(pretrained)


def read_tiny_config() -> dict:
    """open_clip configuration of the embedded backbone."""
    path = TINY_FOLDER / "open_clip_config.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: restore it with git, or make it with python synthetic/pretrain.py")
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["model_cfg"] | {"image_norm": {key: content["preprocess_cfg"][key] for key in ("mean", "std")}}


def read_config(name: str) -> dict:
    """open_clip's configuration of a built-in model; InputError if there is none or it is of a kind not served."""
    config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        vits = [known for known in open_clip.list_models() if known.startswith("ViT-")]
        raise InputError(f"open_clip has no model {name!r}; ViTs it has: {', '.join(vits[:12])}, ...")
    reason = refusal(config)
    if reason:
        raise InputError(f"model {name} cannot be used: {reason}; use a ViT with a class token, e.g. ViT-L-14-336")
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}


def refusal(config: dict) -> str | None:
    """Why a tower of this open_clip configuration cannot carry DPAM and learned prompts; None if it can."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    custom_block = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
    checks = (
        ("multimodal_cfg" in config, "it is a CoCa, whose image features come from an attentional pooler"),
        (
            "timm_model_name" in vision,
            f"its vision tower is timm's {vision.get('timm_model_name')}, not open_clip's ViT",
        ),
        (
            isinstance(vision.get("layers"), list),
            "its vision tower is a ResNet, which has no class token or V-V attention",
        ),
        (bool(vision.get("attentional_pool")), "its image features come from an attentional pooler"),
        (vision.get("pool_type", "tok") != "tok", "its image feature is not the class token"),
        (vision.get("block_type") or any(vision.get(key) for key in custom_block), "its blocks are not CLIP's"),
        ("hf_model_name" in text, f"its text tower is Hugging Face's {text.get('hf_model_name')}"),
        (
            "hf_tokenizer_name" in text or text.get("vocab_size", VOCABULARY) != VOCABULARY,
            "its tokenizer is not CLIP's",
        ),
        (bool(text.get("no_causal_mask")), "its text tower is not causal"),
        (bool(text.get("embed_cls")) or text.get("pool_type", "argmax") != "argmax", "it does not read the EOT token"),
        (text.get("proj_type", "linear") != "linear", "its text tower has no projection"),
    )
    return next((reason for failed, reason in checks if failed), None)


def find_tagged_weights(name: str, tag: str) -> tuple[Path, bool, dict]:
    """Weights file of an open_clip tag (downloaded if need be), whether they need QuickGELU, and mean and std."""
    weights = get_pretrained_cfg(name.replace("/", "-"), tag)
    if not weights:
        tags = ", ".join(list_pretrained_tags_by_model(name.replace("/", "-"))) or "none"
        raise InputError(f"pretrained {tag!r} is neither a file nor a tag of {name} (tags: {tags})")
    quick_gelu = weights.get("quick_gelu", False)
    norm = {key: tuple(weights[key]) for key in ("mean", "std") if weights.get(key)}
    url = weights.get("url", "")
    file_name = os.path.basename(url) or f"{name}-{tag}.safetensors"
    places = (Path.home() / ".cache" / "clip" / file_name, TINY_FOLDER.parent / file_name)
    for place in places:
        if place.is_file():
            return place, quick_gelu, norm
    try:
        return Path(download_pretrained(weights)), quick_gelu, norm
    except Exception as error:  # the hub and urllib raise many kinds, all meaning "no weights"
        detail = one_line(error)
        source = url or f"Hugging Face ({weights.get('hf_hub', '').rstrip('/')})"
        raise InputError(
            f"the weights of {name} ({tag}) are not on this machine and cannot be downloaded ({detail}); "
            f"get {file_name} from {source} and place it at {places[0]}, or give its path as pretrained"
        ) from None


def read_state_dict(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Tensors of a weights file under open_clip's names, and whether it is an original OpenAI file."""
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist; check the path, or name an open_clip tag")
    try:
        if path.suffix == ".safetensors":
            content, archive = load_file(path), False
        else:
            archive = is_torchscript(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = (
                    torch.jit.load(path, map_location="cpu").state_dict()
                    if archive
                    else torch.load(path, map_location="cpu", weights_only=True)
                )
    except pickle.UnpicklingError:
        raise InputError(f"{path} holds more than tensors and is not opened; save a plain state dict instead") from None
    except (RuntimeError, SafetensorError, EOFError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as weights ({one_line(error)}); get it again") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, (torch.Tensor, int)) for value in content.values()):
        raise InputError(f"{path} is not a state dict (names with tensors); save model.state_dict()")
    from_openai = archive or "input_resolution" in content
    state = {}
    for key, value in content.items():
        key = key.removeprefix("module.").removeprefix("text.")
        if key not in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
            state[key] = value
    check_names(state, path)
    return state, from_openai


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a zip with code inside) rather than a pickled state dict."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in entry or entry.endswith("constants.pkl") for entry in archive.namelist())


def check_names(state: dict, path: Path) -> None:
    """InputError if the names of a state dict tell that it is no CLIP ViT."""
    kinds = {
        "visual.layer1.": "a ResNet CLIP, which has no class token or V-V attention",
        "visual.trunk.": "a CLIP with one of timm's towers (SigLIP, EVA, ConvNeXt, ...)",
        "visual.attn_pool.": "a CLIP with an attentional pooler (CoCa)",
        "logit_bias": "a SigLIP",
        "vision_model.": "a CLIP with the names of Hugging Face transformers; convert it to open_clip's names",
    }
    for prefix, kind in kinds.items():
        if any(key.startswith(prefix) for key in state):
            raise InputError(f"{path} cannot be used: it holds {kind}")
    if "visual.conv1.weight" not in state or "text_projection" not in state:
        raise InputError(f"{path} holds no CLIP ViT with OpenAI's or open_clip's names (no visual.conv1.weight)")


def config_from_state_dict(state: dict[str, torch.Tensor], path: Path) -> dict:
    """Configuration of a CLIP with OpenAI's conventions (heads of 64, QuickGELU) from the shapes of its weights."""
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        vision = {"layers": count_blocks(state, "visual."), "width": width, "patch_size": patch}
        text_width = len(state["ln_final.weight"])
        text = {"layers": count_blocks(state, ""), "width": text_width, "heads": text_width // 64}
        text |= {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": len(state["token_embedding.weight"]),
        }
    except KeyError as missing:
        raise InputError(f"{path} is incomplete: no {missing.args[0]}; get it again") from None
    same_size = [open_clip.get_model_config(known) for known in open_clip.list_models()]
    head_widths = {
        known["vision_cfg"].get("head_width", 64)
        for known in same_size
        if all(known["vision_cfg"].get(key) == value for key, value in vision.items())
    }
    if width % 64 or text_width % 64 or (head_widths and 64 not in head_widths):
        raise InputError(
            f"{path} holds a tower of width {width}, whose heads are not 64 wide; name its open_clip model"
        )
    return {
        "embed_dim": state["text_projection"].shape[1],
        "vision_cfg": vision | {"image_size": side * patch},
        "text_cfg": text,
        "quick_gelu": True,
    }


def count_blocks(state: dict[str, torch.Tensor], prefix: str) -> int:
    """Number of transformer blocks under `prefix`."""
    start = f"{prefix}transformer.resblocks."
    return len({key[len(start) :].split(".")[0] for key in state if key.startswith(start)})


def load_weights(clip: open_clip.CLIP, state: dict[str, torch.Tensor], complaint: str) -> None:
    """Copy `state` into `clip` (as float32); an InputError that begins with `complaint` if names or shapes differ."""
    own = clip.state_dict()
    with contextlib.suppress(KeyError):
        state["logit_scale"] = state["logit_scale"].reshape(own["logit_scale"].shape)
    different = sorted(own.keys() ^ state.keys())
    if different:
        raise InputError(f"{complaint}: {len(different)} names differ, the first is {different[0]}")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise InputError(f"{complaint}: {key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}")
    clip.load_state_dict(state)
