"""Captions of the pre-training pairs: templates, state words, and the vocabulary they use."""

import numpy as np

from synthetic import world

TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of one {}.",
    "an image of a {} for visual inspection.",
    "a close-up photo of a {} on a plain ground.",
    "there is a {} in the scene.",
    "this is one {} seen from above by a camera in the factory.",
)
NORMAL = ("{}", "clean {}", "whole {}", "new {}", "good {}", "normal {}", "{} in good condition")
GENERAL_NORMAL = (
    "flawless {}",
    "perfect {}",
    "intact {}",
    "undamaged {}",
    "{} without defect",
    "{} without damage",
    "{} without flaw",
)
GENERAL_DAMAGED = (
    "damaged {}",
    "broken {}",
    "defective {}",
    "flawed {}",
    "{} with defect",
    "{} with damage",
    "{} with a flaw",
)
WHERE_WORDS = {
    "blob": "blotch",
    "oval": "spot",
    "patch": "patch",
    "shard": "piece",
    "line": "scratch",
    "curve": "thread",
    "crack": "crack",
    "spots": "spots",
    "band": "stripe",
    "bite": "edge",
    "end": "end",
    "wedge": "cut",
    "loop": "ring",
    "burst": "splinter",
}
WHAT_WORDS = {
    "paint": "painted",
    "stain": "tainted",
    "burn": "burnt",
    "darken": "dark",
    "bleach": "bleached",
    "remove": "missing",
    "static": "noisy",
    "mottle": "mottled",
    "displace": "displaced",
    "swirl": "bent",
    "smear": "smeared",
    "dent": "embossed",
    "recolour": "recoloured",
    "invert": "inverted",
    "scrape": "scraped",
    "fade": "greyed",
}
SPECIFIC = ("{what} {noun}", "{noun} with a {where}", "{noun} with a {what} {where}")
NOUNS = {"disc", "egg", "block", "bar", "triangle", "card", "badge", "medal", "rosette", "cog", "ring", "rod", "token"}
NOUNS |= {"vase", "flask", "cross", "fabric", "wall", "floor", "sheet", "surface", "texture", "object"}


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def caption_pair(rng: np.random.Generator, name: str, where: str, what: str, general: bool) -> tuple[str, str]:
    """Captions of a clean `name` and of one with the defect (where, what); they differ in the state words only.

    `general` captions say that something is wrong ("damaged"), the others say what ("burnt", "with a dark crack").
    """
    template = pick(rng, TEMPLATES)
    if general:
        states = pick(rng, GENERAL_NORMAL).format(name), pick(rng, GENERAL_DAMAGED).format(name)
    else:
        damaged = pick(rng, SPECIFIC).format(noun=name, where=WHERE_WORDS[where], what=WHAT_WORDS[what])
        states = pick(rng, NORMAL).format(name), damaged
    return template.format(states[0]), template.format(states[1])


def all_words() -> str:
    """Every word that a caption can hold, separated by blanks."""
    phrases = (
        *TEMPLATES,
        *NORMAL,
        *GENERAL_NORMAL,
        *GENERAL_DAMAGED,
        "with a",
        *WHERE_WORDS.values(),
        *WHAT_WORDS.values(),
        *sorted(NOUNS),
    )
    colours = (*world.HUES, *world.GREYS, *world.PATTERNS)
    return " ".join(phrase.replace("{}", " ") for phrase in (*phrases, *colours))
