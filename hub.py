"""A checkpoint as a folder in the form of Hugging Face's hub: README.md (the card), config.json, model.safetensors.

`export.py --format hub` writes it; `checkpoint.find_checkpoint` says how it is found again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint import HUB_CONFIG, HUB_KIND, HUB_TENSORS, find_checkpoint, read_checkpoint
from utils import InputError, atomic_path, shown, write_json, write_text

if TYPE_CHECKING:
    from predict import Predictor

TEXT_FEATURES = "text_features"


def write_hub_folder(folder: Path, predictor: Predictor, checkpoint: Path | None, results: list[Path]) -> None:
    """Write the folder of a predictor's checkpoint; `results`: metrics.json files of test.py for the card."""
    from safetensors.torch import save

    method, settings = predictor.method, predictor.record["settings"]
    if method.learner is None:
        raise InputError("--format hub holds what was learned; give --checkpoint_path FILE")
    tables = {file: read_results(file) for file in results}
    stored = read_checkpoint(find_checkpoint(checkpoint))
    training = stored.get("training") or {}
    state = {f"{method.STATE}.{name}": value for name, value in method.learner.state_dict().items()}
    features = getattr(method, "text_features", {}).get(predictor.class_name)
    if features is not None:
        state[TEXT_FEATURES] = features
    content = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output {shown(folder)} cannot be written ({error.strerror}); give another folder"
        ) from None
    with atomic_path(folder / HUB_TENSORS) as temporary:
        temporary.write_bytes(content)
    shown_settings = {name: value for name, value in settings.items() if name != "pretrained"}
    pretrained = settings["pretrained"]
    shown_settings["pretrained"] = pretrained and (Path(pretrained).name if os.sep in pretrained else pretrained)
    config = {"kind": HUB_KIND, "state": method.STATE, "settings": shown_settings, "training": training}
    write_json(
        folder / HUB_CONFIG, config | {"class_name": predictor.class_name, "versions": predictor.record["versions"]}
    )
    write_text(folder / "README.md", card(settings, training, tables))


def read_results(file: Path) -> dict:
    """Data set and mean metrics of a metrics.json of test.py; InputError if it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        name, mean = content["dataset"], content["mean"]
        values = {key: value for key, value in mean.items() if isinstance(value, int | float)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--results {shown(file)}: is not a metrics.json of test.py; name one") from None
    return {"dataset": str(name), "mean": values}


def card(settings: dict, training: dict, tables: dict[Path, dict]) -> str:
    """The text of README.md: what the hub shows of the model."""
    backbone = settings["model"] or "weights file"
    columns = list(dict.fromkeys(name for table in tables.values() for name in table["mean"]))
    lines = [
        "---",
        "pipeline_tag: image-segmentation",
        "tags: [anomaly-detection, zero-shot, clip, anomalyclip]",
        "---",
        "",
        f"# {settings['method']}, learned for {backbone}",
        "",
        "The learned part of a method for zero-shot anomaly detection, AnomalyCLIP (Zhou et al., ICLR 2024, arXiv",
        "2310.18961) or a related one. The frozen CLIP that it belongs to is not part of this folder.",
        "",
        "```bash",
        "python test.py --data_path DATA --checkpoint_path hf-hub:OWNER/NAME",
        "python predict.py PICTURES --checkpoint_path hf-hub:OWNER/NAME",
        "```",
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items() if name != "pretrained" and value is not None),
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in training.items()),
    ]
    if tables:
        lines += ["", "## Results", "", f"| data set | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for table in tables.values():
            cells = [f"{table['mean'][name]:.1f}" if name in table["mean"] else "-" for name in columns]
            lines.append(f"| {table['dataset']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
