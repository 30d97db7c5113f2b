"""One file from a method and its checkpoint: an ONNX graph from picture to score and map, or a folder for a model hub.

    python export.py --checkpoint_path epoch_15.pth                                # model.onnx
    python export.py --prompt hand-written --output plain.onnx
    python export.py --checkpoint_path epoch_15.pth --format hub --output my_model

The graph takes `images` (B, 3, S, S), uint8 RGB, resized, any B, and gives `scores` (B,) and smoothed `maps` (B, S, S),
float32. `deploy/runtime.py` runs it without torch. Needs requirements/export.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.runtime import METADATA
from options import add_flags
from predict import Predictor, method_options
from utils import InputError, nonempty_path, run_cli, shown

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

ONE_FILE = 1.9e9  # bytes of weights that fit into a file with the graph; protobuf ends at 2 GB
LARGEST_DIFFERENCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2}  # of scores and maps
NEEDS = "export.py needs onnx, onnxscript and onnxruntime; pip install -r requirements/export.txt"
PICTURE = Path(__file__).parent / "docs" / "panels.png"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve"
    )
    parser.add_argument("--checkpoint_path", type=nonempty_path, help="epoch_N.pth (none: a method without training)")
    parser.add_argument("--output", type=nonempty_path, help="file, or folder for a hub (model.onnx, hub_model)")
    parser.add_argument("--format", choices=("onnx", "hub"), default="onnx", help="ONNX graph, or a folder (onnx)")
    parser.add_argument("--opset", type=int, choices=(18, 19, 20), default=18, help="of the graph (18)")
    parser.add_argument("--calibration", type=nonempty_path, metavar="FILE", help="calibration.json of predict.py")
    parser.add_argument("--class_name", default="object", help="for prompts that name the object (object)")
    parser.add_argument(
        "--results", type=nonempty_path, nargs="+", default=[], metavar="FILE", help="metrics.json for the hub's card"
    )
    add_flags(parser, "TESTING")
    parser.add_argument(
        "--precision", choices=LARGEST_DIFFERENCE, default="fp32", help="of the graph's matrix products (fp32)"
    )
    args = parser.parse_args()
    args.output = args.output or Path({"onnx": "model.onnx", "hub": "hub_model"}[args.format])
    return args


def export(args: argparse.Namespace) -> None:
    """Write what the command line asks for."""
    check_flags(args)
    if args.format == "hub":
        from hub import write_hub_folder

        write_hub_folder(args.output, open_predictor(args), args.checkpoint_path, args.results)
        print(f"wrote {args.output}/: README.md, config.json, model.safetensors")
        return
    start = time.perf_counter()
    with steps("loading", "tracing", "writing", "comparing") as step:
        predictor = open_predictor(args)
        metadata = metadata_of(args, predictor)
        step()
        program, graph = trace(predictor, args.opset)
        step()
        files = write_graph(args.output, program, metadata, args.precision, size_in_bytes(graph))
        step()
        differences = compare(args.output, predictor)
    for what, (score, values) in differences.items():
        print(f"{what}: largest difference of scores {score:.1e}, of maps {values:.1e}")
    worst = max(max(pair) for pair in differences.values())
    if not worst <= LARGEST_DIFFERENCE[args.precision]:
        for file in files:
            file.unlink()
        raise InputError(
            f"{shown(args.output)}: the graph differs from the model by {worst:.1e}, and more than "
            f"{LARGEST_DIFFERENCE[args.precision]:.0e} is not allowed; it was deleted"
        )
    sizes = ", ".join(f"{file} ({file.stat().st_size / 1e6:.1f} MB)" for file in files)
    print(f"wrote {sizes} in {time.perf_counter() - start:.0f} s")


def check_flags(args: argparse.Namespace) -> None:
    """InputError for flags that do not go together, and for libraries that are missing."""
    if args.results and args.format == "onnx":
        raise InputError("--results goes with --format hub, whose card shows them")
    if args.output.is_dir() and args.format == "onnx":
        raise InputError(f"--output {shown(args.output)} is a folder; name a file, such as model.onnx")
    if not args.output.parent.is_dir():
        raise InputError(f"--output {shown(args.output)}: there is no folder {shown(args.output.parent)}; make it")
    if args.format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InputError(f"{NEEDS} ({error})") from None


def open_predictor(args: argparse.Namespace) -> Predictor:
    """The method that the flags describe, in float32 on the CPU."""
    options = method_options(args) | {"precision": "fp32", "compile": False}
    return Predictor(args.checkpoint_path, "cpu", class_name=args.class_name, threads=args.threads, **options)


def metadata_of(args: argparse.Namespace, predictor: Predictor) -> dict:
    """What the runtime has to know of a graph: how pictures come in, what scores depend on, and how to decide."""
    from deploy.decisions import check_made_with, read_calibration

    calibration = None
    if args.calibration:
        calibration = read_calibration(args.calibration)
        by_picture = {name: calibration.made_with.get(name) for name in ("tile", "overlap", "value_range")}
        now = predictor.made_with | by_picture | {"precision": args.precision}
        check_made_with(calibration, now, f"--calibration {shown(args.calibration)}")
    mean, std = (list(each) for each in (predictor.method.model._normalize.mean, predictor.method.model._normalize.std))
    return {
        "image_size": predictor.image_size,
        "resize": "bicubic to a square, Pillow; then uint8 RGB, channels first",
        "mean": mean,
        "std": std,
        "highest": predictor.highest,
        "made_with": predictor.made_with | {"precision": args.precision},
        "calibration": calibration and asdict(calibration),
        "versions": predictor.record["versions"],
    }


# the graph


def make_graph(predictor: Predictor) -> nn.Module:
    """Images (B, 3, S, S) uint8 to scores (B,) and smoothed maps (B, S, S), all that is constant worked out."""
    import torch
    from torch import nn

    from AnomalyCLIP_lib.similarity import full_size_matrix

    method, model = predictor.method, predictor.method.model

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = model.clip.visual  # so that its weights are the graph's
            self.mean, self.std = (
                torch.tensor(each).view(3, 1, 1) for each in (model._normalize.mean, model._normalize.std)
            )
            maps = self.unsmoothed(torch.zeros(2, 3, model.image_size, model.image_size, dtype=torch.uint8))[1]
            same = maps.shape[-1] == model.image_size and not predictor.sigma
            self.matrix = None if same else full_size_matrix(maps.shape[-1], model.image_size, predictor.sigma)

        def unsmoothed(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = method.encode((images.float() / 255 - self.mean) / self.std)
            return method.predict(features, predictor.class_name)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores, maps = self.unsmoothed(images)
            maps = maps if self.matrix is None else self.matrix @ maps @ self.matrix.T
            return method.image_scores(scores, maps), maps

    with torch.no_grad():
        return Graph().eval()


def trace(predictor: Predictor, opset: int) -> tuple[torch.onnx.ONNXProgram, nn.Module]:
    """The graph as ONNX; InputError if the method cannot be one."""
    import torch

    if predictor.record["settings"]["method"] == "winclip":
        raise InputError(
            "--method winclip cannot be one graph: its windows go through the tower in pieces, and how many there are "
            "depends on the number of pictures; use predict.py"
        )
    graph, size = make_graph(predictor), predictor.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)  # a batch of 1 would be taken for a constant
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=["scores", "maps"],
                dynamic_shapes={"images": {0: "batch"}},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.export raises many kinds
        method = predictor.record["settings"]["method"]
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        raise InputError(f"--method {method} cannot be made into one graph ({reason}); use predict.py") from None
    return program, graph


def size_in_bytes(graph: nn.Module) -> int:
    """What the weights of a graph take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in graph.parameters())


def write_graph(
    path: Path, program: torch.onnx.ONNXProgram, metadata: dict, precision: str, weights_size: float
) -> list[Path]:
    """Write an ONNX file, its weights in it where they fit, else beside it in PATH.data; the files."""
    import onnx

    beside = weights_size / (2 if precision == "fp16" else 1) > ONE_FILE  # to_int8 begins with all of it
    program.model.metadata_props[METADATA] = json.dumps(metadata, default=str)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        if precision == "fp16":
            model = to_half(program.model_proto)
            onnx.save(model, made, save_as_external_data=beside, location=f"{path.name}.data")
        else:
            program.save(made, external_data=beside)
        if precision == "int8":
            to_int8(made, beside)
        files = sorted(Path(folder).iterdir(), reverse=True)  # weights first, so that the graph is never without
        for file in files:
            os.replace(file, path.parent / file.name)
    if not beside:
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of an earlier, larger graph
    return sorted(path.parent / file.name for file in files)


def to_half(model):
    """An ONNX model with matrix products in float16; norms, softmax, similarities and maps stay float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = ["LayerNormalization", "Softmax", "ReduceL2", "ReduceSum", "ReduceMean", "Div", "Clip", "Sqrt"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *kept], node_block_list=tail_of(model)
        )
    single = {node.output[0]: node for node in half.graph.node}  # onnxruntime 1.30 casts a value once for each reader
    del half.graph.node[:]
    half.graph.node.extend(single.values())
    without_detours = OnnxModel(half)  # between nodes that stay float32 it leaves values cast to float16 and back
    without_detours.remove_cascaded_cast_nodes()
    return without_detours.model


def tail_of(model) -> list[str]:
    """Names of the nodes behind the last norm of an ONNX model: projection, similarity and map, which stay float32.

    Among them are those that prepare constants for no other nodes.
    """
    nodes = list(model.graph.node)
    norms = [place for place, node in enumerate(nodes) if node.op_type == "LayerNormalization"]
    tail = {node.name for node in nodes[norms[-1] :]}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in nodes:
        if constants.issuperset(node.input):
            constants.update(node.output)
    for node in reversed(nodes[: norms[-1]]):
        if constants.issuperset(node.output):
            readers = [reader.name for reader in nodes if set(node.output) & set(reader.input)]
            if tail.issuperset(readers):
                tail.add(node.name)
    return list(tail)


def to_int8(path: Path, beside: bool) -> None:
    """Replace an ONNX file by one with matrix products of 8-bit integers, whose ranges are found as it runs."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    floats = path.with_name("floats.onnx")
    path.replace(floats)
    options = {"op_types_to_quantize": ["MatMul"], "per_channel": True, "use_external_data_format": beside}
    logging.getLogger().setLevel(logging.ERROR)  # it speaks of steps that change nothing here
    tail = tail_of(onnx.load(floats, load_external_data=False))
    quantize_dynamic(floats, path, weight_type=QuantType.QInt8, nodes_to_exclude=tail, **options)
    floats.unlink()


def compare(path: Path, predictor: Predictor) -> dict[str, tuple[float, float]]:
    """Largest differences of scores and of maps between a graph and its model, for batches of 1, 2 and 3 images."""
    import numpy as np

    from deploy.runtime import Detector

    detector = Detector(path)
    size, stream = predictor.image_size, np.random.RandomState(0)
    real = predictor.read(PICTURE)[1] if PICTURE.is_file() else np.zeros((3, size, size), np.uint8)
    differences = {}
    for batch in (1, 2, 3):
        images = np.stack([real, *stream.randint(0, 256, (batch - 1, 3, size, size), np.uint8)])
        differences[f"batch of {batch}"] = largest_difference(detector.predict(images), predictor.predict(images))
    return differences


def largest_difference(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> tuple[float, ...]:
    """The largest absolute difference of each pair of arrays."""
    return tuple(float(abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


# what is seen meanwhile


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's words on its own workings."""
    level = logging.getLogger("torch.onnx").level
    try:
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def steps(*names: str) -> Iterator:
    """A progress bar over named steps; what it yields is called at the end of each but the last."""
    from tqdm import tqdm

    with tqdm(total=len(names), desc=names[0], unit="step", leave=False) as bar:

        def step() -> None:
            bar.update()
            bar.set_description(names[bar.n])

        yield step


if __name__ == "__main__":
    run_cli(lambda: export(parse_args()))
