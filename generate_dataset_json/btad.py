"""Write ROOT/meta.json for BTAD: CLASS/{train,test}/{ok,ko}/*, masks of the same stem in CLASS/ground_truth/ko/*."""

from pathlib import Path

import builder


def layout(root: Path) -> builder.Splits:
    """ok is normal; image and mask differ in their suffix for some classes."""
    return builder.mvtec_layout(root, normal="ok", tags=("",))


if __name__ == "__main__":
    builder.run("btad", layout, __doc__)
