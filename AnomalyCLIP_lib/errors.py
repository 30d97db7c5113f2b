"""The one exception that means: what was given is wrong, and words for its messages. Needs nothing but Python."""

import os


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: which file or flag, what is wrong, what to do."""


def one_line(error: BaseException, length: int = 120) -> str:
    """First line of an error's message, cut to `length` characters; its kind if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:length]


def shown(path: str | bytes | os.PathLike) -> str:
    """A path or name for a message of one line: as it is, or escaped where it holds line breaks and the like."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)


def impostor(path: str | os.PathLike) -> str | None:
    """What a file is instead of what its name says, if it is one of the usual two; None if it is not."""
    try:
        with open(path, "rb") as file:
            start = file.read(200)
    except OSError:
        return None
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file; run git lfs pull"
    if start.lstrip()[:200].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page instead of the file; download it again"
    return None
