"""Small helpers shared by the scripts: clear errors, types of flags, seeds, devices, atomic files, run folders."""

import argparse
import contextlib
import json
import logging
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from AnomalyCLIP_lib.errors import InputError, shown

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm",
    ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif",
)  # fmt: skip


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def nonnegative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def nonnegative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


def run_cli(main: Callable[[], None]) -> None:
    """Run a script's main().

    Bad input, a missing library and a failing disk end it with one line on stderr and exit code 2, Ctrl-C with exit
    code 130.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        print(
            f"error: {sys.executable} lacks the module {error.name}; activate the scripts' environment with "
            "source .venv/bin/activate, or pip install -r requirements.txt",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:
        print(
            f"error: {error.filename or 'file system'}: {error.strerror or error}; check disk and permissions",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is on disk", file=sys.stderr)
        sys.exit(130)


def is_image(name: str) -> bool:
    """Whether a file name looks like that of an image; hidden files (macOS leaves ._NAME.png) do not."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def set_seed(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pick_device(name: str | None) -> str:
    """`name` if it can be used here, else InputError; None picks cuda, then mps, then cpu."""
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return next(kind for kind, ok in usable.items() if ok)
    if not usable.get(name.split(":")[0], False):
        raise InputError(f"--device {name} is not available here; use one of {[k for k, ok in usable.items() if ok]}")
    return name


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds and vanishes if it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write indented JSON atomically; key order is kept, non-ASCII letters stay readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def make_run_folder(path: str | os.PathLike) -> Path:
    """Create the folder that a run writes into; InputError when that is not possible."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with atomic_path(path / "writable") as temporary:
            temporary.touch()
        (path / "writable").unlink()
    except OSError as error:
        raise InputError(f"--save_path {path} cannot be written ({error.strerror}); give another folder") from None
    return path


def get_logger(folder: Path, quiet: bool = False) -> logging.Logger:
    """Logger that writes to the console and appends to `folder`/log.txt; a quiet one does neither."""
    logger = logging.getLogger("anomalyclip")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    if quiet:
        logger.addHandler(logging.NullHandler())
        return logger
    for handler in (logging.StreamHandler(sys.stdout), logging.FileHandler(folder / "log.txt", encoding="utf-8")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def environment() -> dict[str, str | None]:
    """Versions of python and the libraries that numbers depend on, and the git revision of this code."""
    versions: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "open_clip_torch", "numpy", "scipy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        versions["revision"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["revision"] = None
    return versions
