"""Loading CLIP weights: open_clip tags, OpenAI's archives, plain state dicts, and the embedded tiny backbone."""

import http.client
import json
import os
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

from .errors import InputError, one_line, shown
from .model import AnomalyCLIP
from .weights import read_state_dict

TINY_FOLDER = Path(__file__).parent.parent / "checkpoints" / "tiny"
VOCABULARY = 49408
GEOMETRY = {  # tensors that tell a CLIP's sizes, and how many dimensions they have
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "ln_final.weight": 1,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "text_projection": 2,
}
HUB = "hf-hub:"  # what names of models on Hugging Face begin with, as in open_clip
ANSWER_SECONDS = 4  # how long a host of weights may take to answer
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
        name: an open_clip model such as "ViT-L-14-336", "hf-hub:OWNER/NAME" for one of open_clip's on Hugging Face, or
            "tiny", the backbone that comes with this repository.
            With a file for `pretrained` it may be None: the geometry is then read from the weights (heads are
            width / 64 and the activation QuickGELU, as in OpenAI's models).
        pretrained: an open_clip tag ("openai", ...), or a file: OpenAI's TorchScript archive or a state dict
            (.pt, .pth, .safetensors) with OpenAI's or open_clip's names.
        image_size: S in pixels, a multiple of the patch size; default 518 for patch 14, else the tower's own.
        dpam_layer: n: a DPAM stream runs beside the last n - 1 blocks; 1: no DPAM. Default 20 for 24 blocks and the
            same share of the blocks for other depths.
        dpam_mode: "vv", "qq" or "kk".
        device: a torch device.
        precision: "fp32", "bf16" or "fp16": of the vision tower's matrix products (torch.autocast).

    Raises:
        InputError: unknown names, towers that are not supported, weights that are missing, broken or do not fit.
    """
    if precision != "fp32" and not torch.amp.is_autocast_available(torch.device(device).type):
        raise InputError(f"precision {precision} is not available on {device} with torch {torch.__version__}; use fp32")
    if name == "tiny":
        config, path = read_tiny_config(), TINY_FOLDER / "model.safetensors"
        if pretrained is not None:
            raise InputError(f"model 'tiny' has its own weights; leave out pretrained ({pretrained})")
    elif name is not None and name.startswith(HUB):
        config, path = find_in_hub(name, pretrained)
    elif pretrained is None:
        raise InputError(f"no weights named for model {name}: give an open_clip tag such as 'openai', or a file")
    elif is_file_name(pretrained):
        config, path = None if name is None else read_config(name), Path(pretrained)
    elif name is None:
        raise InputError(f"pretrained {str(pretrained)!r} is not a file; an open_clip tag needs a model name beside it")
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clip = open_clip.CLIP(**config)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"open_clip cannot build {shown(name or path)} ({one_line(error)}); choose another") from None
    load_weights(clip, state, f"{shown(path)} {f'does not fit model {name}' if name else 'is incomplete'}")
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
        raise InputError(f"{path} is missing: restore it with git")
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["model_cfg"] | {"image_norm": {key: content["preprocess_cfg"][key] for key in ("mean", "std")}}


def read_config(name: str) -> dict:
    """open_clip's configuration of a built-in model; InputError if there is none or its kind is not supported."""
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


def find_in_hub(name: str, pretrained: str | os.PathLike | None) -> tuple[dict, Path]:
    """Configuration and weights file of a model "hf-hub:OWNER/NAME"; `pretrained` is a file of other weights for it."""
    if pretrained is not None and not is_file_name(pretrained):
        raise InputError(f"{shown(name)} brings its own weights; leave out pretrained {pretrained!r}, or name a file")
    repository = name.removeprefix(HUB)
    try:
        file = hub_file(repository, "open_clip_config.json")
        content = json.loads(file.read_text(encoding="utf-8"))
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
        reason = refusal(config)
        if reason is None:
            path = hub_file(repository, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME) if pretrained is None else pretrained
    except Exception as error:  # the hub raises many kinds, and the configuration may be anything
        raise InputError(
            f"model {shown(name)} cannot be had ({one_line(error)}); check its name and the network, or give the name "
            "of one of open_clip's models"
        ) from None
    if reason:
        raise InputError(f"model {shown(name)} cannot be used: {reason}; use a ViT with a class token")
    config = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}
    config["image_norm"] = {key: tuple(preprocessing[key]) for key in ("mean", "std") if preprocessing.get(key)}
    return config, Path(path)


def hub_file(repository: str, *names: str) -> Path:
    """The first of these files that a repository of Hugging Face has: from the cache, else downloaded into it.

    Raises OSError at once if the hub does not answer.
    """
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    endpoint = huggingface_hub.constants.ENDPOINT
    problem = unreachable(endpoint)
    if problem:
        raise OSError(f"{urlsplit(endpoint).netloc}: {problem}")
    for name in names[:-1]:
        if huggingface_hub.file_exists(repository, name):
            return Path(huggingface_hub.hf_hub_download(repository, name))
    return Path(huggingface_hub.hf_hub_download(repository, names[-1]))


def find_tagged_weights(name: str, tag: str) -> tuple[Path, bool, dict]:
    """Weights file of an open_clip tag (downloaded if need be), whether they need QuickGELU, and mean and std."""
    weights = get_pretrained_cfg(name.replace("/", "-"), tag)
    if not weights:
        tags = ", ".join(list_pretrained_tags_by_model(name.replace("/", "-"))) or "none"
        raise InputError(f"pretrained {tag!r} is neither a file nor a tag of {name} (tags: {tags})")
    norm = {key: tuple(weights[key]) for key in ("mean", "std") if weights.get(key)}
    url = weights.get("url", "")
    file_name = os.path.basename(url) or f"{name}-{tag}.safetensors"
    places = (Path.home() / ".cache" / "clip" / file_name, TINY_FOLDER.parent / file_name)
    found = next((place for place in places if place.is_file()), None) or find_in_hub_cache(weights)
    if found is None:
        try:
            found = download(weights, places[0])
        except Exception as error:  # the hub and urllib raise many kinds, all meaning "no weights"
            source = url or f"Hugging Face ({weights.get('hf_hub', '').rstrip('/')})"
            raise InputError(
                f"the weights of {name} ({tag}) are not on this machine and cannot be downloaded ({one_line(error)}); "
                f"get {file_name} from {source} and place it at {places[0]}, or give its path as pretrained"
            ) from None
    return found, weights.get("quick_gelu", False), norm


def find_in_hub_cache(weights: dict) -> Path | None:
    """The file of an open_clip tag in Hugging Face's cache, where open_clip puts it; None if it is not there."""
    repository, _, file_name = weights.get("hf_hub", "").rpartition("/")
    names = (file_name,) if file_name else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    found = (huggingface_hub.try_to_load_from_cache(repository, each) for each in names if repository)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def download(weights: dict, place: Path) -> Path:
    """Download the file of an open_clip tag: from Hugging Face into its cache, else from its own address to `place`.

    Raises OSError at once if neither answers; the hub's own client would try again for most of a minute.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    hub, url = huggingface_hub.constants.ENDPOINT if weights.get("hf_hub") else "", weights.get("url", "")
    problems = {}
    for source in filter(None, (hub, url)):
        problems[source] = unreachable(source)
        if problems[source] is None and source == hub:
            return Path(download_pretrained(weights))
        if problems[source] is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:  # a download that breaks off leaves nothing
                os.replace(download_pretrained(weights, prefer_hf_hub=False, cache_dir=folder), place)
            return place
    raise OSError("; ".join(f"{urlsplit(source).netloc}: {problem}" for source, problem in problems.items()))


def unreachable(url: str) -> str | None:
    """Why the host of `url` does not answer within a few seconds; None if it does, whatever it answers."""
    outcome = ["no answer"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS).close()
            outcome[0] = None
        except urllib.error.HTTPError:
            outcome[0] = None
        except (OSError, ValueError, http.client.HTTPException) as error:
            outcome[0] = one_line(getattr(error, "reason", None) or error)

    # In a thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return outcome[0]


def config_from_state_dict(state: dict[str, torch.Tensor], path: Path) -> dict:
    """Configuration of a CLIP with OpenAI's conventions (heads of 64, QuickGELU) from the shapes of its weights."""
    shapes = {}
    for name, dimensions in GEOMETRY.items():
        if name not in state:
            raise InputError(f"{shown(path)} is incomplete: no {name}; download it again")
        shapes[name] = tuple(state[name].shape)
        if len(shapes[name]) != dimensions or 0 in shapes[name]:
            raise InputError(f"{shown(path)} holds no CLIP ViT: its {name} has the shape {shapes[name]}")
    width, channels, patch, patch_width = shapes["visual.conv1.weight"]
    grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    vision = {"layers": count_blocks(state, "visual."), "width": width, "patch_size": patch}
    (text_width,) = shapes["ln_final.weight"]
    text = {"layers": count_blocks(state, ""), "width": text_width, "heads": text_width // 64}
    text |= {
        "context_length": shapes["positional_embedding"][0],
        "vocab_size": shapes["token_embedding.weight"][0],
    }
    if channels != 3 or patch != patch_width or not grid or not vision["layers"] or not text["layers"]:
        raise InputError(f"{shown(path)} holds no CLIP ViT: its patches are not square RGB ones, or it has no blocks")
    if text["vocab_size"] != VOCABULARY:
        raise InputError(f"{shown(path)} has a vocabulary of {text['vocab_size']}, CLIP's tokenizer has {VOCABULARY}")
    configurations = [open_clip.get_model_config(known) for known in open_clip.list_models()]
    head_widths = {
        known["vision_cfg"].get("head_width", 64)
        for known in configurations
        if all(known["vision_cfg"].get(key) == value for key, value in vision.items())
    }
    if width % 64 or text_width % 64 or (head_widths and 64 not in head_widths):
        raise InputError(
            f"{shown(path)} holds a tower of width {width}, whose heads are not 64 wide; name its open_clip model"
        )
    return {
        "embed_dim": state["text_projection"].shape[1],
        "vision_cfg": vision | {"image_size": grid * patch},
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
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(own["logit_scale"].shape)
    different = sorted(own.keys() ^ state.keys())
    if different:
        raise InputError(f"{complaint}: {len(different)} names differ, the first is {shown(different[0])}")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise InputError(f"{complaint}: {key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}")
        if not state[key].is_floating_point():
            raise InputError(f"{complaint}: {key} holds {state[key].dtype}, expected floating point numbers")
    clip.load_state_dict(state)
