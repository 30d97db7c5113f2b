"""Captions of the pre-training scenes: templates, state words, and the vocabulary they use."""

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
STRUCTURAL = {"remove", "dent", "swirl", "displace", "scrape", "burn", "invert", "smear", "static"}
SPECIFIC = ("{what} {noun}", "{noun} with a {where}", "{noun} with a {what} {where}")
NOUNS = {"disc", "egg", "block", "bar", "triangle", "card", "badge", "medal", "rosette", "cog", "ring", "rod", "token"}
NOUNS |= {"vase", "flask", "cross", "fabric", "wall", "floor", "sheet", "surface", "texture", "object"}


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of the options."""
    return options[rng.integers(len(options))]


def caption_triple(rng: np.random.Generator, name: str, where: str, what: str, general: bool) -> tuple[str, str, str]:
    """Captions of a clean `name`, of one with the defect (where, what), and of one with a different defect.

    They differ in the state words only. With `general`, general words ("damaged") stand for structural damage; a change
    of colour is never called so.
    """
    template = pick(rng, TEMPLATES)
    clean, form = pick(rng, NORMAL), pick(rng, SPECIFIC)
    right = form.format(noun=name, where=WHERE_WORDS[where], what=WHAT_WORDS[what])
    other_where = pick(rng, tuple(word for key, word in WHERE_WORDS.items() if key != where))
    other_what = pick(rng, tuple(word for key, word in WHAT_WORDS.items() if key != what))
    wrong = form.format(noun=name, where=other_where, what=other_what)
    if general:
        clean, broken = pick(rng, GENERAL_NORMAL), pick(rng, GENERAL_DAMAGED).format(name)
        right, wrong = (broken, wrong) if what in STRUCTURAL else (right, broken)
    clean = clean.format(name)
    return template.format(clean), template.format(right), template.format(wrong)


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
    colours = (*world.HUES, *world.GREYS, *world.PATTERNS, "rough")
    return " ".join(phrase.replace("{}", " ") for phrase in (*phrases, *colours))
