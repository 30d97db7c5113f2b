"""Scores and maps of pictures from an ONNX file of export.py, without torch: onnxruntime, NumPy and Pillow alone.

    python deploy/runtime.py model.onnx my_pictures/ --save_path results/runtime

The same sources and the same predictions.csv as of predict.py; decisions come from the calibration in the file. Needs
deploy/requirements.txt; with OpenCV installed too, regions are counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deploy.detector import BaseDetector
from deploy.sources import EXIT_CODES, add_source_flags, check_apart, find_pictures
from utils import InputError, nonempty_path, open_run, positive_int, processor, run_cli, shown, write_json

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

    from deploy.decisions import Calibration

METADATA = "anomalyclip"  # the key under which a file holds what there is to know of its graph
NEEDS = "needs onnxruntime; pip install -r deploy/requirements.txt"
WEIGHTLESS = "there is no file of weights beside it; put {name}.data, which export.py wrote, into the same folder"


class Detector(BaseDetector):
    """A model in an ONNX file, ready to look at pictures; calling it gives a `deploy.detector.Result`.

    Args:
        path: the file, of export.py.
        tile, overlap, value_range: see `BaseDetector`; None: as the calibration in the file was made, else the whole
            picture alone, 0.25 and the range of the pictures' type. tile 0: the whole picture alone.
        batch_size: pictures or windows that go through the model together.
        threads: of the CPU; None: as many as onnxruntime takes.
        providers: of onnxruntime, such as ["CUDAExecutionProvider"]; None: the CPU.

    Attributes:
        calibration: what decides, or None if the file holds none. See also `BaseDetector`.

    Raises InputError for a file that cannot be used, and settings that contradict its calibration.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        tile: int | None = None,
        overlap: float | None = None,
        value_range: tuple[float, float] | None = None,
        batch_size: int = 8,
        threads: int | None = None,
        providers: list[str] | None = None,
    ) -> None:
        self.session = open_session(path, threads, providers)
        self.metadata = read_metadata(self.session, path)
        before = (self.metadata["calibration"] or {}).get("made_with", {})
        tile = before.get("tile") if tile is None else tile or None
        overlap = (before.get("overlap") or 0.25) if overlap is None else overlap
        value_range = before.get("value_range") if value_range is None else value_range
        super().__init__(tile, overlap, value_range, batch_size)
        self.image_size, self.highest = self.metadata["image_size"], self.metadata["highest"]
        by_picture = {"tile": tile, "overlap": overlap if tile else None, "value_range": value_range}
        self.made_with = self.metadata["made_with"] | by_picture
        self.calibration = self._calibration(shown(path))

    def _calibration(self, where: str) -> Calibration | None:
        from deploy.decisions import calibration_from, check_made_with

        if self.metadata["calibration"] is None:
            return None
        calibration = calibration_from(self.metadata["calibration"], f"{where}: its calibration")
        check_made_with(calibration, self.made_with, f"{where}: its calibration")
        return calibration

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B,) and smoothed maps (B, S, S) of images (B, 3, S, S) uint8."""
        size = self.image_size
        if images.shape[1:] != (3, size, size) or images.dtype.name != "uint8":
            given = f"{tuple(images.shape)} {images.dtype}"
            raise InputError(f"the graph takes images (B, 3, {size}, {size}) uint8, and these are {given}")
        return tuple(self.session.run(["scores", "maps"], {"images": images}))


def open_session(path: str | os.PathLike, threads: int | None, providers: list[str] | None) -> Any:
    """onnxruntime's session of a file; InputError if it has none."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it leaves a file in the folder for temporary ones
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{NEEDS} ({error})") from None

    if not os.path.isfile(path):
        raise InputError(f"{shown(path)}: no such file; make one with export.py")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers or ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception for each of its states
        raise InputError(f"{shown(path)}: {why_not_opened(path, error)}") from None


def why_not_opened(path: str | os.PathLike, error: Exception) -> str:
    """The end of a message on a file that onnxruntime does not open."""
    from AnomalyCLIP_lib.errors import impostor

    text = " ".join(str(error).split())
    if impostor(path):
        return f"is {impostor(path)}"
    if "opset" in text.lower():
        return f"onnxruntime {version('onnxruntime')} is too old for it; pip install --upgrade onnxruntime"
    if ".data" in text or "external data" in text.lower():
        return WEIGHTLESS.format(name=os.path.basename(path))
    return f"is no ONNX file, or cut off ({text[-120:]}); make it again with export.py"


def read_metadata(session: onnxruntime.InferenceSession, path: str | os.PathLike) -> dict:
    """What export.py wrote into a file; InputError if it is not such a file."""
    again = "make it with export.py"
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise InputError(f"{shown(path)}: is not one of export.py's files, it lacks their metadata; {again}")
    kinds = {"image_size": int, "highest": float, "made_with": dict, "calibration": dict | None, "versions": dict}
    try:
        content = json.loads(text)
        sound = all(isinstance(content[name], kind) for name, kind in kinds.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    names = [value.name for value in session.get_outputs()]
    if not sound or names != ["scores", "maps"] or session.get_inputs()[0].name != "images":
        raise InputError(f"{shown(path)}: its metadata are not as export.py writes them; {again}")
    size = content["image_size"]
    if session.get_inputs()[0].shape[1:] != [3, size, size]:
        raise InputError(f"{shown(path)}: its metadata speak of {size} pixels, its graph does not; {again}")
    return content


# a run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=nonempty_path, metavar="MODEL", help="model.onnx of export.py")
    add_source_flags(parser, "results/runtime")
    parser.add_argument("--tile", type=int, metavar="N", help="also look at windows of N x N pixels; 0: do not")
    parser.add_argument("--overlap", type=float, help="share by which windows overlap (0.25)")
    parser.add_argument(
        "--value_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="black and white in pictures over 8 bits"
    )
    parser.add_argument("--normal", nargs="+", metavar="SOURCE", help="normal pictures to make new thresholds from")
    parser.add_argument(
        "--false_alarms", type=float, metavar="A", help="share of normal pictures that may be called anomalous (0.05)"
    )
    parser.add_argument("--save_maps", action="store_true", help="maps as 16-bit PNG")
    parser.add_argument("--save_masks", action="store_true", help="anomalous pixels as PNG")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="pictures or windows at a time (8)")
    parser.add_argument("--num_workers", type=positive_int, default=4, help="threads that read pictures (4)")
    parser.add_argument("--threads", type=positive_int, help="of the CPU (as many as onnxruntime takes)")
    return parser.parse_args()


def look(args: argparse.Namespace) -> int:
    """Look at all pictures of the command line and write predictions.csv; the exit code."""
    from deploy.decisions import FALSE_ALARMS, Calibration, check_number, from_rows, write_calibration
    from deploy.results import Journal, output_names, stamp, write_csv
    from deploy.run import Output, look_at_all, measure

    if args.tile is not None and args.tile < 0:
        raise InputError(f"--tile {args.tile} is negative; give a number of pixels, or 0")
    if args.false_alarms is not None and not (args.normal and 0 < args.false_alarms < 1):
        raise InputError(f"--false_alarms {args.false_alarms}: a share between 0 and 1, and it goes with --normal")
    false_alarms = args.false_alarms or FALSE_ALARMS
    pictures = find_pictures(args.sources)
    normal = find_pictures(args.normal, "--normal") if args.normal else []
    check_apart(args.save_path, [*args.sources, *(args.normal or [])], [*pictures, *normal])
    if normal:
        check_number(len(normal), false_alarms)
    logger = open_run(args.save_path)
    options = ("tile", "overlap", "value_range", "batch_size", "threads")
    detector = Detector(args.model, **{name: getattr(args, name) for name in options})
    calibration = detector.calibration or Calibration()
    if args.save_masks and calibration.pixel_threshold is None and not normal:
        raise InputError(f"--save_masks needs a calibration, and {shown(args.model)} holds none; give --normal")

    arguments = {name: value for name, value in vars(args).items() if name not in ("sources", "num_workers")}
    named = [[picture.name, picture.path] for picture in [*normal, *pictures]]
    key = {"arguments": arguments, "model": stamp(str(args.model)), "pictures": named}
    journal = Journal(args.save_path, key)
    journal.take_over()
    versions = detector.metadata["versions"] | {"onnxruntime": version("onnxruntime")}
    versions |= {"python": platform.python_version(), "pillow": version("pillow")}
    record = {"arguments": vars(args), "made_with": detector.made_with, "versions": versions, "processor": processor()}
    write_json(args.save_path / "args.json", {"program": "deploy/runtime.py", **record})
    logger.info("%d pictures, %s", len(pictures), shown(args.model))

    size = 1 if detector.tile else args.batch_size
    if normal:
        numbered = {number - len(normal): picture for number, picture in enumerate(normal)}
        look_at_all(detector, numbered, journal, measure, size, args.num_workers, "normal pictures")
        rows = (row for row in journal.read() if row["number"] < 0)
        calibration = from_rows(rows, false_alarms, detector.made_with)
        write_calibration(args.save_path / "calibration.json", calibration)
    logger.info("%s", calibration.in_words() if calibration.made else "no calibration, so no decisions")
    output = Output(
        calibration,
        detector.highest,
        args.save_path,
        output_names([picture.name for picture in pictures]),
        maps=args.save_maps,
        masks=args.save_masks,
        drawn=importlib.util.find_spec("cv2") is not None,
    )
    look_at_all(detector, dict(enumerate(pictures)), journal, output, size, args.num_workers, "pictures")
    unreadable = write_csv(args.save_path / "predictions.csv", (row for row in journal.read() if row["number"] >= 0))
    journal.remove()
    if unreadable:
        logger.warning("%d pictures could not be read; the column error of predictions.csv says why", unreadable)
    logger.info("in %s: predictions.csv", args.save_path)
    return 1 if unreadable else 0


if __name__ == "__main__":
    run_cli(lambda: sys.exit(look(parse_args())))
