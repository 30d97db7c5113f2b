"""Small helpers shared by the scripts: clear errors, types of flags, seeds, devices, atomic files, run folders."""

import argparse
import contextlib
import csv
import errno
import functools
import json
import logging
import os
import platform
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO

from AnomalyCLIP_lib.errors import InputError, shown

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm",
    ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif",
)  # fmt: skip
LOGGER = "anomalyclip"
DRAWN = ("overlays", "maps", "masks", "vis")  # folders of pictures in run folders


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1 that fits into 32 bits."""
    return bounded(int(text), 1, 2**31 - 1)


def nonnegative_int(text: str) -> int:
    """argparse type: an integer of at least 0 that fits into 32 bits."""
    return bounded(int(text), 0, 2**32 - 1)


def small_int(text: str) -> int:
    """argparse type: an integer from 1 to 10,000, for sizes that memory grows with."""
    return bounded(int(text), 1, 10_000)


def nonnegative_float(text: str) -> float:
    """argparse type: a number of at least 0 that fits into 32 bits."""
    return bounded(float(text), 0, 1e30)


def small_float(text: str) -> float:
    """argparse type: a number from 0 to 1,000, for what computing time grows with."""
    return bounded(float(text), 0, 1000)


def share(text: str) -> float:
    """argparse type: a number between 0 and 1."""
    return bounded(float(text), 0.0, 1.0)


def bounded(number: float, low: float, high: float) -> float:
    """`number`, or an argparse error if it does not lie in [low, high]."""
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{number} is not between {low} and {high}")
    return number


def nonempty_path(text: str) -> Path:
    """argparse type: a path. The empty one, an unset variable of a shell, would stand for the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def run_cli(main: Callable[[], None]) -> None:
    """Run a script's main().

    Bad input, a missing library, a failing disk and exhausted memory end it with one line on stderr and in the run's
    log, and exit code 2; Ctrl-C with exit code 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    INTERRUPTION.watch()
    try:
        main()
        INTERRUPTION.check()
    except KeyboardInterrupt:
        stop_interrupted()
    except Exception as error:
        if INTERRUPTION.came:  # what a library makes of Ctrl-C in the middle of its work
            stop_interrupted()
        message = in_words(error)
        if message is None:
            raise
        stop_with(message)
    finally:
        INTERRUPTION.forget()


class Interruption:
    """Notices Ctrl-C in the main thread, even where a library swallows KeyboardInterrupt or makes an error of it."""

    def __init__(self) -> None:
        self.came, self.watching, self.process = False, False, 0

    def watch(self) -> None:
        """Begin. Signals belong to the main thread; elsewhere, and where Ctrl-C is ignored, nothing changes."""
        self.came, self.process = False, os.getpid()
        with contextlib.suppress(ValueError):
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self.interrupt)
                self.watching = True

    def interrupt(self, *_: object) -> None:
        if os.getpid() == self.process:  # processes that read images leave it to the main process, which ends them
            self.came = True
            raise KeyboardInterrupt

    def check(self) -> None:
        """KeyboardInterrupt if there was one, which was lost."""
        if self.came:
            raise KeyboardInterrupt

    def forget(self) -> None:
        """End."""
        if self.watching:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.came = self.watching = False


INTERRUPTION = Interruption()


def in_words(error: Exception) -> str | None:
    """The line that an error ends a script with; None for one that nobody foresaw, a fault of ours."""
    first = (str(error).splitlines() or [""])[0][:120]
    if isinstance(error, InputError):
        return " ".join(str(error).splitlines())
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{sys.executable} lacks the module {error.name}; activate the scripts' environment with "
            "source .venv/bin/activate, or pip install -r requirements.txt"
        )
    if isinstance(error, OSError):
        where = shown(error.filename) if error.filename else "file system"
        return f"{where}: {error.strerror or first}; check disk and permissions"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in ("DataLoader worker", "shared memory")):
        return (
            "a process that reads images was ended, as happens for lack of memory, or of shared memory (64 MB in "
            "docker; --shm-size 8g gives more); give --num_workers 0 to read without such processes"
        )
    exhausted = ("out of memory", "not enough memory", "t allocate memory", "Cannot allocate memory")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in exhausted)):
        return f"out of memory ({first or 'no more is left'}); lower --batch_size or --image_size"
    return None


def stop_with(message: str) -> None:
    """End the script with exit code 2, and a line on stderr and in the log; of several processes the first speaks."""
    close_progress_bars()
    if is_first_to_speak():
        for handler in logging.getLogger(LOGGER).handlers:
            if isinstance(handler, logging.FileHandler):
                handler.emit(logging.makeLogRecord({"msg": "error: %s", "args": (message,), "levelno": logging.ERROR}))
        print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def is_first_to_speak() -> bool:
    """Whether none of the processes that torchrun started has asked this before: of all with an error one says it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add("anomalyclip/said", 1) == 1
    except Exception:  # without torchrun's own store each says what it has to say
        return True


def stop_interrupted() -> None:
    """End the script with exit code 130."""
    close_progress_bars()
    print("interrupted; what was finished is on disk", file=sys.stderr)
    sys.exit(130)


def close_progress_bars() -> None:
    """End the lines of progress bars that an error left open."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


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


def repeat_exactly(device: str | None) -> None:
    """Let training on CUDA come out the same bit for bit each time; to be called before the first matrix product there.

    Without this, gradients of attention, upsampling and gathered rows add up in the order in which threads finish.
    device: as of --device.
    """
    import torch

    if torch.cuda.is_available() and (device is None or device.startswith("cuda")):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which torch demands for it
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # takes time, and nothing here reads such memory


def pick_device(name: str | None) -> str:
    """`name` if it can be used here, else InputError; None picks cuda, then mps, then cpu."""
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return next(kind for kind, ok in usable.items() if ok)
    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not usable.get(kind, False) or (":" in name and number not in map(str, range(count))):
        available = [kind for kind, ok in usable.items() if ok]
        raise InputError(f"--device {shown(name)} is not available here; use one of {available}")
    return name


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds and vanishes if it does not.

    InputError if `path` is there and is not a file: a folder or a device is not replaced.
    """
    path = Path(path)
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{shown(path)} is there and not a file; give another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk does not say whose
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically; what is no text, such as parts of odd file names, as \\udcff."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write indented JSON atomically; key order is kept, non-ASCII letters stay readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_rows(path: str | os.PathLike, rows: Iterable[Iterable]) -> None:
    """Write rows of cells as CSV, UTF-8, atomically; what is no text as in `write_text`."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


def open_run(folder: Path) -> logging.Logger:
    """Make the folder of a run, and give its logger, which writes to the console and appends to `folder`/log.txt.

    The folder is this process's alone until it ends, however it ends. What killed processes left half-written in it is
    deleted. InputError if it cannot be written or another process writes into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "writable") as temporary:
            temporary.touch()
        (folder / "writable").unlink()
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(
            f"--save_path {shown(folder)} cannot be written ({error.strerror}); give another folder"
        ) from None
    logger = get_logger(ConsoleHandler(), file)
    if not locked(file.stream):
        get_logger()  # the log is the other's
        raise InputError(f"--save_path {shown(folder)} is another run's, which has not ended; give another folder")
    for place in (folder, *(folder / name for name in DRAWN)):
        for left in place.glob(".*.tmp") if place == folder else place.rglob(".*.tmp"):
            if left.name.split(".")[-2].isdecimal():
                left.unlink(missing_ok=True)
    return logger


def get_logger(*handlers: logging.Handler) -> logging.Logger:
    """The scripts' logger, with these handlers and no others; silent without any."""
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    for handler in handlers or [logging.NullHandler()]:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger


class ConsoleHandler(logging.Handler):
    """Writes lines to stdout, above the progress bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            from tqdm import tqdm

            write = tqdm.write
        except ImportError:
            write = print
        write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def locked(file: IO) -> bool:
    """Whether this process could lock an open file; where that is not possible at all, it counts as locked.

    The lock ends with the process, and processes that it starts do not inherit it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def pick_precision(name: str, device: str) -> str:
    """`name`, but for "auto" bf16 where the hardware multiplies it faster than fp32, else fp32."""
    import torch

    if name != "auto":
        return name
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device == "cpu" and bool({"amx_bf16", "avx512_bf16"} & processor_features())
    return "bf16" if fast else "fp32"


@functools.cache
def processor_features() -> set[str]:
    """Names of the processor's instruction sets, as Linux spells them; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), ()))


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
