"""See that the weights of a backbone are on this machine, and download them if need be, before many runs need them.

    python scripts/paper/weights.py --method winclip
    python scripts/paper/weights.py --method anomalyclip --pretrained ViT-L-14-336px.pt

Takes the flags of train.py and test.py and passes over those that do not name a backbone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import methods
from utils import InputError, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=methods.names(), default="anomalyclip")
    parser.add_argument("--model", help="open_clip model, or tiny for the embedded one (the method's own)")
    parser.add_argument("--pretrained", help="open_clip tag or weights file (the method's own)")
    args, _ = parser.parse_known_args()
    defaults = methods.flags(args.method)["SETTINGS"]
    model, pretrained = args.model or defaults["model"], args.pretrained or defaults["pretrained"]
    if model == "tiny":
        return

    from AnomalyCLIP_lib.backbones import HUB, find_in_hub, find_tagged_weights, is_file_name

    if model.startswith(HUB):
        _, path = find_in_hub(model, args.pretrained)
        print(f"weights of {model}: {path}")
    elif not is_file_name(pretrained):
        path, _, _ = find_tagged_weights(model, pretrained)
        print(f"weights of {model} ({pretrained}): {path}")
    elif not Path(pretrained).is_file():
        raise InputError(f"weights file {pretrained} does not exist; check --pretrained")


if __name__ == "__main__":
    run_cli(main)
