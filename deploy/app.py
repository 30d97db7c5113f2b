"""A page to look at pictures with: drop some, see what is anomalous in them, move the thresholds.

    python deploy/app.py model.onnx
    python deploy/app.py epoch_15.pth --port 8000
    python deploy/app.py                            # hand-written prompts
    python deploy/app.py --model tiny               # the same with the small embedded backbone, to try the page

Needs gradio: pip install -r requirements/app.txt. Nothing is fetched from anywhere, nothing stays on disk.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deploy.page import (
    STEPS,
    ask,
    calibrate,
    check_share,
    csv_text,
    full_row,
    look_again,
    look_at,
    position_of,
    same_windows,
    shrink,
    takes_words,
    threshold_at,
    uploaded,
    with_windows,
    with_words,
    write_masks,
)
from deploy.visits import Visit, Visits, digits, note, notes_on_unread, origin, summary, table
from utils import INTERRUPTION, InputError, bounded, in_words, nonempty_path, positive_int, run_cli

if TYPE_CHECKING:
    import gradio as gr

    from deploy.decisions import Calibration
    from deploy.detector import BaseDetector

MAX_FILE = 100 << 20  # bytes of a picture's file
KEPT = (60, 1800)  # seconds: how often the page's files are looked through, and how old they get
SMALL = 320  # pixels, the longer side of pictures in the gallery
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}  # the system's, not fetched
CSS = """
.app-wrong, .app-bad { color: #b91c1c; } .dark .app-wrong, .dark .app-bad { color: #fca5a5; }
.app-bad { font-weight: 600; }
#rows { overflow-x: auto; }
.app-table { border-collapse: collapse; width: 100%; } .app-table, .app-table tr { border: none !important; }
.app-table td, .app-table th { padding: 3px 0 3px 14px !important; text-align: right !important; white-space: nowrap;
  border: none !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.app-table td:first-child, .app-table th:first-child { text-align: left !important; padding-left: 0 !important;
  width: 99%; min-width: 80px; white-space: normal; overflow-wrap: anywhere; }
.app-plain .head, .app-plain .min_value, .app-plain .max_value { display: none !important; }
.app-large .image-frame, .app-large img { width: 100%; max-height: 65vh; object-fit: contain; }
#gallery .grid-wrap { height: auto; min-height: 0; max-height: 420px; }
@media (max-width: 640px) {
  .app-table { font-size: 12px; } .app-table td, .app-table th { padding-left: 6px !important; }
  #gallery .grid-container { grid-template-columns: repeat(2, 1fr); } #gallery .caption-label { font-size: 11px; }
}
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "path", nargs="?", type=nonempty_path, metavar="MODEL", help="model.onnx or epoch_N.pth (hand-written prompts)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of them (127.0.0.1)")
    parser.add_argument("--port", type=lambda text: bounded(int(text), 1, 65535), default=7860, help="(7860)")
    parser.add_argument("--calibration", type=nonempty_path, metavar="FILE", help="calibration.json of predict.py")
    parser.add_argument("--model", help="open_clip model of the prompts, or tiny (ViT-L-14-336)")
    parser.add_argument("--pretrained", help="open_clip tag or weights file (openai)")
    parser.add_argument("--device", help="cuda, mps or cpu (the best there is)")
    parser.add_argument("--threads", type=positive_int, help="of the CPU")
    return parser.parse_args()


# model


def open_detector(args: argparse.Namespace) -> BaseDetector:
    """The detector that the command line names; InputError if there is none."""
    given = {name: getattr(args, name) for name in ("model", "pretrained") if getattr(args, name) is not None}
    if args.path is not None and not args.path.is_file():
        raise InputError(f"MODEL {args.path} is no file; give model.onnx or epoch_N.pth")
    if args.path is not None and args.path.suffix == ".onnx":
        wrong = [*given, *(["device"] if args.device else [])]
        if wrong:
            raise InputError(f"--{wrong[0]} does not go with model.onnx; leave it out")
        from deploy.runtime import Detector

        return Detector(args.path, threads=args.threads)
    if args.path is not None and args.path.suffix not in (".pth", ".pt"):
        raise InputError(f"MODEL {args.path} is neither model.onnx nor epoch_N.pth; give one of these")
    from predict import Predictor

    return Predictor(args.path, args.device, threads=args.threads, **given)


# the page


def build_page(detector: BaseDetector, start: Calibration, name: str) -> gr.Blocks:
    """The page, not yet served.

    Args:
        detector: the model; it is asked one request at a time.
        start: thresholds to begin with.
        name: of the model, for the title.
    """
    global gr  # gradio evaluates the annotations of what it calls
    import gradio as gr

    from deploy.decisions import FALSE_ALARMS, Calibration
    from deploy.run import in_digits
    from pictures import Scale, overlay, scale_around

    visits, tracker = Visits(start), gr.Progress()
    one_by_one = {"concurrency_id": "model", "concurrency_limit": 1}  # requests that run the model
    private = {"api_visibility": "private"}

    def answering(function: Callable) -> Callable:
        """The function; what was given wrong becomes a message for whoever asked."""

        @functools.wraps(function)
        def answer(*arguments, **named):  # noqa: ANN202
            try:
                return function(*arguments, **named)
            except Exception as error:
                message = in_words(error)
                if message is None:
                    raise
                raise gr.Error(message, print_exception=False) from None

        return answer

    def view(visit: Visit, text: str, map_text: str, strength: float) -> list:
        """All that thresholds and strength change: the values of `viewed`."""
        calibration = visit.decides(text, map_text)
        threshold, cut = calibration.pixel_threshold, functools.partial(shrink, longest=SMALL)
        scale = scale_around(threshold, calibration.map_median, detector.highest)
        readable = visit.readable()
        gallery = []
        for each in readable:
            drawn = overlay(*map(cut, visit.small[each.number][:2]), scale, threshold, bar=False, strength=strength)
            gallery.append((drawn, f"{in_digits(each.result.score)} {calibration.decide(each.result.score)}".strip()))
        picture, values, own_values = visit.small.get(visit.chosen, (None, None, None))
        heat = own = None
        if picture is not None:
            heat = overlay(picture, values, scale, threshold, bar=False, strength=strength)
        if own_values is not None:
            own = overlay(picture, own_values, Scale(0, detector.highest), bar=False, strength=strength)
        rows = [full_row(each, calibration, visit.own.get(each.number)) for each in readable]
        name = next((each.picture.name for each in readable if each.number == visit.chosen), "")
        return [
            summary(visit, calibration),
            gr.Gallery(gallery, visible=bool(readable)),
            gr.Image(picture, label=name, visible=picture is not None),
            gr.Image(heat, visible=heat is not None),
            gr.Image(own, visible=own is not None),
            table(rows),
            gr.Row(visible=bool(readable)),
        ]

    def all_of(visit: Visit, text: str, map_text: str, strength: float) -> list:
        """The values of `settled`: fields, sliders and what they change."""
        calibration = visit.decides(text, map_text)
        position = position_of(calibration.threshold, visit.values(), 1.0)
        map_position = position_of(calibration.pixel_threshold, visit.map_values(), detector.highest)
        return [text, map_text, position, map_position, *view(visit, text, map_text, strength)]

    def steps(progress: Any) -> Callable[[int, int], None]:
        return lambda done, number: progress((done, number), unit="pictures")

    @answering
    def show(
        files: list[str] | None, tile, overlap, normal, abnormal, text, map_text, strength,
        request: gr.Request, progress=tracker,
    ):  # fmt: skip
        """Look at new pictures, or (None) at the same ones with other words or windows."""
        visit, used = visits[request.session_hash], with_windows(detector, tile, overlap)
        words, windows = with_words(used, normal, abnormal), (used.tile, used.overlap)
        seen = look_at(used, files, steps(progress)) if files else visit.seen
        if not files and windows != visit.windows:
            seen = look_again(used, seen, steps(progress))
        readable = [each for each in seen if not each.error]
        own = ask(words, readable, steps(progress)) if words else {}
        if not same_windows(visit.calibration, used):
            visit.calibration, text, map_text = Calibration(), "", ""
            gr.Warning("Other windows: calibrate again.")
        visit.keep(seen, own, windows)
        return [None, *all_of(visit, text, map_text, strength)]

    @answering
    def learn(files, share, tile, overlap, text, map_text, strength, request: gr.Request, progress=tracker):
        """Thresholds from good pictures."""
        visit, used = visits[request.session_hash], with_windows(detector, tile, overlap)
        seen = []
        try:
            check_share(len(files or []), share)
            seen = look_at(used, files, steps(progress))
            visit.calibration = calibrate(seen, share, used.made_with)
            text, map_text = digits(visit.calibration.threshold), digits(visit.calibration.pixel_threshold)
            said = note(origin(visit.calibration))
        except InputError as error:
            said = note(str(error), wrong=True)
        return [None, said + notes_on_unread(seen), *all_of(visit, text, map_text, strength)]

    @answering
    def settle(text, map_text, strength, request: gr.Request):
        """Thresholds that were typed."""
        return all_of(visits[request.session_hash], text, map_text, strength)

    def slide(position, map_text, strength, request: gr.Request):
        visit = visits[request.session_hash]
        text = digits(threshold_at(position, visit.values(), 1.0))
        return [text, *view(visit, text, map_text, strength)]

    def slide_map(position, text, strength, request: gr.Request):
        visit = visits[request.session_hash]
        map_text = digits(threshold_at(position, visit.map_values(), detector.highest))
        return [map_text, *view(visit, text, map_text, strength)]

    @answering
    def redraw(text, map_text, strength, request: gr.Request):
        return view(visits[request.session_hash], text, map_text, strength)

    @answering
    def choose(text, map_text, strength, request: gr.Request, event: gr.SelectData):
        visit = visits[request.session_hash]
        visit.chosen = visit.readable()[event.index].number if event.index < len(visit.readable()) else None
        return view(visit, text, map_text, strength)

    @answering
    def save_table(text, map_text, request: gr.Request) -> str:
        visit = visits[request.session_hash]
        calibration, path = visit.decides(text, map_text), visit.download("predictions.csv")
        rows = [full_row(each, calibration, visit.own.get(each.number), outlines=True) for each in visit.seen]
        path.write_text(csv_text(rows), encoding="utf-8", newline="")
        return str(path)

    @answering
    def save_masks(text, map_text, request: gr.Request) -> str:
        visit = visits[request.session_hash]
        threshold, path = visit.decides(text, map_text).pixel_threshold, visit.download("masks.zip")
        if threshold is None:
            raise InputError("masks need a map threshold: calibrate, or move its slider")
        write_masks(path, visit.seen, threshold)
        return str(path)

    def leave(request: gr.Request) -> None:
        visits.end(request.session_hash)

    def look(
        files: list[gr.FileData],
        threshold: float | None = start.threshold,
        pixel_threshold: float | None = start.pixel_threshold,
        tile: int = detector.tile or 0,
        overlap: float = detector.overlap,
        normal: str = "",
        abnormal: str = "",
    ) -> list[dict]:
        """Rows of pictures as in predictions.csv, with outlines of regions, and own_score with words of one's own."""
        used = with_windows(detector, tile, overlap)
        words = with_words(used, normal, abnormal)
        kept = start if same_windows(start, used) else Calibration()
        calibration = replace(kept, threshold=threshold, pixel_threshold=pixel_threshold)
        rows = []
        for each in look_at(used, uploaded(files)):
            own = ask(words, [each])[each.number] if words and not each.error else None
            row = full_row(each, calibration, own, outlines=True)
            name = row.pop("path")  # a dict with a path would be taken for a file
            rows.append({"name": name} | {key: row[key] for key in row if key not in ("number", "stamp")})
        return rows

    def calibrate_by_api(
        files: list[gr.FileData],
        false_alarms: float = FALSE_ALARMS,
        tile: int = detector.tile or 0,
        overlap: float = detector.overlap,
    ) -> dict:
        """Thresholds from good pictures: the content of calibration.json."""
        used = with_windows(detector, tile, overlap)
        paths = uploaded(files)
        check_share(len(paths), false_alarms)
        seen = look_at(used, paths)
        return asdict(calibrate(seen, false_alarms, json.loads(json.dumps(used.made_with, default=str))))

    plain = {"step": 1, "show_label": False, "elem_classes": "app-plain", "buttons": []}
    large = {
        "visible": False,
        "format": "jpeg",
        "buttons": ["fullscreen"],
        "min_width": 240,
        "elem_classes": "app-large",
    }
    thumbs = {"columns": 5, "fit_columns": False, "object_fit": "contain", "allow_preview": False, "format": "jpeg"}
    prompts = {"lines": 2, "info": "several prompts: one a line"}
    several = {"file_count": "multiple", "height": 140}
    with gr.Blocks(title="Anomalies", analytics_enabled=False, delete_cache=KEPT, fill_width=True) as blocks:
        gr.Markdown(f"### Anomalies in pictures\n{name}")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                files = gr.File(label="Pictures", elem_id="files", **several)
                with gr.Group():
                    text = gr.Textbox(
                        digits(start.threshold), label="Score threshold", placeholder="none", elem_id="score"
                    )
                    slider = gr.Slider(0, STEPS, STEPS, elem_id="score-slider", **plain)
                    cut = digits(start.pixel_threshold)
                    map_text = gr.Textbox(cut, label="Map threshold", placeholder="none", elem_id="map")
                    map_slider = gr.Slider(0, STEPS, STEPS, elem_id="map-slider", **plain)
                    strength = gr.Slider(0, 1, 0.5, step=0.05, label="Heat map", buttons=[], elem_id="strength")
                with gr.Accordion("Calibrate with good pictures", open=False):
                    share = gr.Number(FALSE_ALARMS, label="False alarms", info="0.05 needs 19 pictures, 0.01 needs 99")
                    good = gr.File(label="Good pictures", elem_id="good", **several)
                    made = gr.HTML(note(origin(start)), elem_id="made")
                with gr.Accordion("Your own words", open=False, visible=takes_words(detector)):
                    example = "a photo of a clean bottle"
                    normal = gr.Textbox(label="Normal", placeholder=example, elem_id="normal", **prompts)
                    example = "a photo of a broken bottle"
                    abnormal = gr.Textbox(label="Abnormal", placeholder=example, elem_id="abnormal", **prompts)
                    words = gr.Button("Compare", size="sm", elem_id="compare")
                with gr.Accordion("Windows for large pictures", open=False):
                    tile = gr.Number(
                        detector.tile or 0, label="Width in pixels", info="0: none", precision=0, elem_id="tile"
                    )
                    overlap = gr.Slider(0, 0.9, detector.overlap, step=0.05, label="Overlap", buttons=[])
                    windows = gr.Button("Look again", size="sm", elem_id="again")
            with gr.Column(scale=3, min_width=300):
                said = gr.HTML(note("Drop pictures into the first field."), elem_id="said")
                gallery = gr.Gallery(visible=False, show_label=False, buttons=[], elem_id="gallery", **thumbs)
                with gr.Row():
                    picture = gr.Image(label="Picture", elem_id="picture", **large)
                    heat = gr.Image(label="Heat map", elem_id="heat", **large)
                    own = gr.Image(label="Own words", elem_id="own", **large)
                rows = gr.HTML(elem_id="rows")
                with gr.Row(visible=False) as downloads:
                    get_table = gr.Button("Table (csv)", size="sm", elem_id="csv")
                    get_masks = gr.Button("Masks (zip)", size="sm", elem_id="zip")
                table_file = gr.DownloadButton(visible="hidden", elem_id="csv-file")
                masks_file = gr.DownloadButton(visible="hidden", elem_id="zip-file")

        fields, viewed = [text, map_text, strength], [said, gallery, picture, heat, own, rows, downloads]
        settled, asked = [text, map_text, slider, map_slider, *viewed], [tile, overlap, normal, abnormal, *fields]
        quick = {"show_progress": "hidden", "trigger_mode": "always_last", **private}
        model = {"show_progress_on": said, **private, **one_by_one}
        files.upload(show, [files, *asked], [files, *settled], **model)
        gr.on([words.click, windows.click], show, [gr.State(), *asked], [files, *settled], **model)
        good.upload(learn, [good, share, tile, overlap, *fields], [good, made, *settled], **model)
        slider.input(slide, [slider, map_text, strength], [text, *viewed], **quick)
        map_slider.input(slide_map, [map_slider, text, strength], [map_text, *viewed], **quick)
        gr.on([text.submit, text.blur, map_text.submit, map_text.blur], settle, fields, settled, **quick)
        strength.input(redraw, fields, viewed, **quick)
        gallery.select(choose, fields, viewed, **quick)
        for button, save, file in ((get_table, save_table, table_file), (get_masks, save_masks, masks_file)):
            fetch = f"() => setTimeout(() => document.getElementById('{file.elem_id}').click(), 100)"
            button.click(save, [text, map_text], file, **private).success(None, js=fetch)
        gr.api(answering(look), api_name="look", **one_by_one)
        gr.api(answering(calibrate_by_api), api_name="calibrate", **one_by_one)
        blocks.unload(leave)
    return blocks.queue(default_concurrency_limit=1, api_open=False)


def check_address(host: str, port: int) -> None:
    """InputError if nothing can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"--host {host} --port {port} cannot be used ({error.strerror}); give another one") from None


def serve(args: argparse.Namespace) -> None:
    """Open the model and serve the page until Ctrl-C or SIGTERM."""
    from deploy.decisions import Calibration, check_made_with, read_calibration

    if importlib.util.find_spec("gradio") is None:
        raise InputError("needs gradio; pip install -r requirements/app.txt")
    check_address(args.host, args.port)
    given = read_calibration(args.calibration) if args.calibration else None
    detector = open_detector(args)
    if given:
        detector = with_windows(detector, given.made_with.get("tile"), given.made_with.get("overlap"))
        check_made_with(given, detector.made_with, f"--calibration {args.calibration}")
    start = given or getattr(detector, "calibration", None) or Calibration()
    name = f"{args.path.name if args.path else 'hand-written prompts'}{f', {args.model}' if args.model else ''}"

    import gradio as gr

    blocks = build_page(detector, start, name)
    theme = gr.themes.Default(**FONTS)
    try:
        blocks.launch(
            server_name=args.host, server_port=args.port, max_file_size=MAX_FILE, theme=theme, css=CSS,
            footer_links=["api"], run_history=False, enable_monitoring=False, share=False, ssr_mode=False, pwa=False,
            mcp_server=False, inbrowser=False, quiet=True, show_error=False, prevent_thread_lock=True,
        )  # fmt: skip
        print(f"http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
        INTERRUPTION.check()
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def main() -> None:
    args = parse_args()
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    folder = tempfile.tempdir = tempfile.mkdtemp(prefix="anomalyclip_page_")  # of torch and gradio alike
    os.environ |= {"TMPDIR": folder, "GRADIO_TEMP_DIR": folder}
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}
    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost")))
    stopped = False
    try:
        serve(args)
    except KeyboardInterrupt:
        stopped = True
    finally:
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)
    if stopped:  # the way to end it; a picture that the model is still looking at is not waited for
        os._exit(0)


if __name__ == "__main__":
    run_cli(main)
