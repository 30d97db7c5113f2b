"""The one exception that means: what was given is wrong. Needs nothing but Python, so that every --help stays fast."""


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: which file or flag, what is wrong, what to do."""


def one_line(error: BaseException, length: int = 120) -> str:
    """First line of an error's message, cut to `length` characters; its kind if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:length]
