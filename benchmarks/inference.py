"""Seconds, error and memory of one picture: the plain procedure, ours in fp32 and bf16, onnxruntime and OpenVINO.

python benchmarks/inference.py            # ViT-L/14@336 at 518 px, generated weights, on the CPU; ten minutes
python benchmarks/inference.py --small    # a small tower, a minute
python benchmarks/inference.py --only plain fp32
python benchmarks/inference.py --threads 2

Rows whose library is missing are left out, and said. Errors are those against ours in fp32.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from common import alternate, attention_rate, finish, generated_model, machine, matrix_product_rate, net_peak_memory

from utils import positive_int

ROWS = ("plain", "fp32", "bf16", "bf16 of two", "bf16 of two, compiled", "ort", "ort int8", "openvino", "openvino bf16")


def multiplications(width: int, layers: int, patch: int, tokens: int, joint: int, doubled: int) -> dict[str, float]:
    """FLOPs (two per multiply-add) of one image in the matrix products that model.detect needs, last block tapped."""
    blocks, last = layers - 1, 1
    return {
        "patch embedding": 2 * (tokens - 1) * 3 * patch**2 * width,
        "qkv": 6 * tokens * width**2 * (blocks + last),
        "attention": 4 * tokens**2 * width * blocks + 4 * tokens * width * last,
        "attention of DPAM": 4 * tokens**2 * width * doubled,
        "output projections": 2 * tokens * width**2 * (blocks + doubled) + 2 * width**2 * last,
        "mlp": 16 * tokens * width**2 * blocks + 16 * width**2 * last,
        "joint space": 2 * (tokens + 1) * width * joint,
    }


def exported(model, text_features, layers: list[int], folder: Path) -> dict[str, Path]:
    """The model with these text features as ONNX files of export.py, by their precision."""
    import methods
    from export import size_in_bytes, trace, write_graph

    settings = methods.flags("anomalyclip")["SETTINGS"] | {"prompt": "hand-written", "features_list": layers}
    method = methods.method_class("anomalyclip")(model, settings)
    method.text_features = {"object": text_features}
    named = {"method": method, "class_name": "object", "sigma": 4.0, "image_size": model.image_size}
    program, graph = trace(SimpleNamespace(**named, record={"settings": {"method": "anomalyclip"}}), opset=18)
    files = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "int8")}
    for precision, file in files.items():
        write_graph(file, program, {}, precision, size_in_bytes(graph))
    return files


def onnxruntime_path(file: Path, image: np.ndarray, threads: int) -> Callable[[], tuple]:
    """A call of onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["scores", "maps"], {"images": image})


def openvino_path(file: Path, image: np.ndarray, threads: int, precision: str) -> Callable[[], tuple]:
    """A call of OpenVINO, on the CPU; precision: its hint, "f32" or "bf16"."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(file), "CPU", options)

    def run() -> tuple:
        result = compiled([image])
        return result[0], result[1]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="width 256, 12 blocks, 252 px")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each path; the best counts")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--threads", type=positive_int, help="of every row (torch's own number)")
    args = parser.parse_args()

    import copy

    import torch
    from plain import detect as plain_detect

    if args.threads:
        torch.set_num_threads(args.threads)
    threads = torch.get_num_threads()
    model, vision = generated_model(args.small, {"width": 128, "heads": 2, "layers": 2})
    image_size, dpam_layer = model.image_size, model.dpam_layer
    image = torch.randint(0, 256, (1, 3, image_size, image_size), dtype=torch.uint8)
    text_features, layers, pixels = torch.randn(2, 768), [vision["layers"]], image.numpy()
    half = copy.deepcopy(model)
    half.precision = "bf16"
    half.cast_vision_tower(torch.bfloat16)
    compiled = copy.copy(half)
    compiled.encode = torch.compile(half.encode, options={"freezing": True})  # as by --compile
    two = image.expand(2, -1, -1, -1)
    paths = {
        "plain": lambda: plain_detect(model.clip, model.normalize(image), text_features, layers, dpam_layer, 4),
        "fp32": lambda: model.detect(image, text_features, layers, 4),
        "bf16": lambda: half.detect(image, text_features, layers, 4),
        "bf16 of two": lambda: half.detect(two, text_features, layers, 4),
        "bf16 of two, compiled": lambda: compiled.detect(two, text_features, layers, 4),
    }
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        if set(args.only) - paths.keys():
            try:
                import onnxscript  # noqa: F401  (without it the export fails later, and less plainly)

                files = exported(model, text_features, layers, Path(folder))
                paths["ort"] = onnxruntime_path(files["fp32"], pixels, threads)
                paths["ort int8"] = onnxruntime_path(files["int8"], pixels, threads)
                for name, hint in (("openvino", "f32"), ("openvino bf16", "bf16")):
                    paths[name] = openvino_path(files["fp32"], pixels, threads, hint)
            except ImportError as error:
                print(f"left out, a library is missing: {error}")
        paths = {name: path for name, path in paths.items() if name in args.only or name == "fp32"}
        alternate(paths, rounds=1)  # warm-up
        rate = matrix_product_rate()
        seconds, results = alternate(paths, args.rounds)
        rate = max(rate, matrix_product_rate())
        half_rate = matrix_product_rate(dtype=torch.bfloat16)
        shape = 1 + model.grid**2, vision["width"] // 64, 64
        attention_rates = {"fp32": attention_rate(*shape), "bf16": attention_rate(*shape, dtype=torch.bfloat16)}
        memory = {name: net_peak_memory(path) for name, path in paths.items()}
    for name in seconds:
        if "of two" in name:
            seconds[name] /= 2
    reference = [np.asarray(each) for each in results["fp32"]]
    counts = multiplications(
        vision["width"], vision["layers"], vision["patch_size"], 1 + model.grid**2, 768, dpam_layer - 1
    )
    total = sum(counts.values())
    for name, value in counts.items():
        print(f"{name:20s} {value / 1e9:8.1f} GFLOP")
    print(f"{'sum':20s} {total / 1e9:8.1f} GFLOP; here {rate / 1e9:.0f} GFLOP/s in fp32, {half_rate / 1e9:.0f} in bf16")
    print(f"bound: {total / rate:.2f} s a picture in fp32, {total / half_rate:.2f} in bf16")
    attention = counts["attention"] + counts["attention of DPAM"]
    for name, other_rate in (("fp32", rate), ("bf16", half_rate)):
        fused, products = attention / attention_rates[name], (total - attention) / other_rate
        shown = f"torch's fused attention, {attention_rates[name] / 1e9:.0f} GFLOP/s, takes {fused:.2f} s of a picture"
        print(f"{name}: {shown}, all other products {products:.2f}")
    base = seconds.get("plain", seconds["fp32"])
    errors = {}
    print(
        f"| {machine()['processor']} | s | ratio | error of score | of map | MB beyond weights |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    for name, taken in seconds.items():
        score, maps = (each[:1] for each in as_batch(results[name]))
        errors[name] = {"score": float(abs(score - reference[0]).max()), "map": float(abs(maps - reference[1]).max())}
        shown = "" if memory[name] is None else f"{memory[name]:.0f}"
        difference = f"{errors[name]['score']:.0e} | {errors[name]['map']:.0e}"
        print(f"| {name} | {taken:.2f} | {base / taken:.2f} | {difference} | {shown} |")
    finish({"ratio": base / seconds["fp32"], "bound_share": total / rate / seconds["fp32"], "errors": errors,
            "seconds": seconds, "peak_memory_mb": memory, "matrix_product_gflops": rate / 1e9,
            "bf16_gflops": half_rate / 1e9, "attention_gflops": {name: each / 1e9 for name, each in
            attention_rates.items()}, "gflop": total / 1e9})  # fmt: skip


def as_batch(result: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Scores (B,) and maps (B, S, S) of a path, of which the plain one gives those of one image alone."""
    score, maps = (np.asarray(each) for each in result)
    return (score[None], maps[None]) if maps.ndim == 2 else (score, maps)


if __name__ == "__main__":
    main()
