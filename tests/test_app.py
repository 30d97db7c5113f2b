"""deploy/app.py: its functions, the program with its API, and the page in a real browser where there is one."""

import copy
import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, check_error, check_help, run_main
from PIL import Image

from deploy import app as APP
from deploy import page as PAGE
from deploy import visits as VISITS
from deploy.decisions import Calibration, from_normals
from deploy.results import COLUMNS
from predict import Predictor
from utils import InputError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def make_pictures(folder: Path, count: int, spot: bool) -> list[str]:
    """Pictures of a smooth ground, with a bright spot or without."""
    stream = np.random.RandomState(count)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((44, 60, 3), 90, np.uint8) + stream.randint(0, 12, (44, 60, 3), np.uint8)
        if spot:
            pixels[10:24, 20:34] = (250, 240, 20)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def bad(folder) -> list[str]:
    return make_pictures(folder / "bad", 2, True)


@pytest.fixture(scope="module")
def good(folder) -> list[str]:
    return make_pictures(folder / "good", 20, False)


@pytest.fixture(scope="module")
def broken(folder) -> str:
    (folder / "notes.png").write_text("no picture")
    return str(folder / "notes.png")


@pytest.fixture(scope="module")
def detector() -> Predictor:
    return Predictor(model="tiny", features_list=[6], device="cpu")


# functions


def test_a_file_that_is_no_picture_does_not_stop_the_others(detector, bad, broken):
    told = []
    seen = PAGE.look_at(detector, [bad[0], broken, bad[0]], lambda *done: told.append(done))
    assert [each.picture.name for each in seen] == ["000.png", "notes.png", "000 (2).png"]
    assert seen[0].result.score == seen[2].result.score == detector(bad[0]).score
    assert seen[1].error.startswith("cannot be read as an image") and told == [(1, 3), (2, 3), (3, 3)]
    rows = [PAGE.full_row(each, Calibration(threshold=0.0, pixel_threshold=0.0), outlines=True) for each in seen]
    assert rows[0]["decision"] == "anomalous" and rows[0]["anomalous_share"] == 1 and rows[0]["regions"] == 1
    table = list(csv.DictReader(io.StringIO(PAGE.csv_text(rows))))
    assert tuple(table[0]) == COLUMNS and table[1]["path"] == "notes.png" and "no format" in table[1]["error"]
    assert "notes.png: cannot be read" in VISITS.notes_on_unread(seen)


def test_limits(detector, bad, monkeypatch):
    with pytest.raises(InputError, match="65 pictures at once; 64 is the limit"):
        PAGE.look_at(detector, bad[:1] * 65)
    monkeypatch.setattr(PAGE, "MAX_PIXELS", 60 * 44)
    first, second = PAGE.look_at(detector, bad)
    assert first.result and second.pixels is None and "million pixels at once" in second.error
    [tiny_windows] = PAGE.look_at(PAGE.with_windows(detector, 1, 0.0), bad[:1])
    assert "more than 2000 windows" in tiny_windows.error


def test_own_words_are_mean_unit_features(detector, bad):
    normal, abnormal = "a clean thing\n\n a good thing ", "a broken thing"
    own = PAGE.with_words(detector, normal, abnormal)
    encode = detector.method.model.encode_text
    units = [torch.nn.functional.normalize(encode([text]), dim=-1)[0] for text in ("a clean thing", "a good thing")]
    features = own.method.text_features["object"]
    assert torch.allclose(features[0], torch.stack(units).mean(dim=0), atol=1e-6)
    before = detector(bad[0]).score
    [seen] = PAGE.look_at(detector, bad[:1])
    assert PAGE.ask(own, [seen])[0].score == own(bad[0]).score != before
    assert detector(bad[0]).score == before  # the model's own prompts are as they were
    assert PAGE.with_words(detector, "", " \n") is None
    for wrong, message in (
        (("a", ""), "fill in both"),
        (("a " * 90, "b"), "longer than the text encoder takes"),
        (("a\n" * 101, "b"), "more than 100 prompts"),
    ):
        with pytest.raises(InputError, match=message):
            PAGE.with_words(detector, *wrong)
    with pytest.raises(InputError, match="need a text encoder"):
        PAGE.with_words(SimpleNamespace(), "a", "b")


def test_calibration_is_predict_pys(detector, good):
    seen = PAGE.look_at(detector, good)
    made = PAGE.calibrate(seen, 0.1, detector.made_with)
    scores, maxima = [each.result.score for each in seen], [each.result.map_max for each in seen]
    assert made == from_normals(scores, maxima, made.map_median, 0.1, detector.made_with)
    with pytest.raises(InputError, match="0.01 false alarms need at least 99 good pictures, and there are 20"):
        PAGE.calibrate(seen, 0.01, {})
    for share in (None, 0, 1.5):
        with pytest.raises(InputError, match="share between 0 and 1"):
            PAGE.check_share(20, share)


def test_windows_are_those_of_predict_py(detector, bad):
    own = PAGE.with_windows(detector, 24, 0.5)
    other = Predictor(model="tiny", features_list=[6], device="cpu", tile=24, overlap=0.5)
    assert own(bad[0]).score == other(bad[0]).score and own.made_with == other.made_with and detector.tile is None
    assert not PAGE.same_windows(Calibration("normal", made_with=own.made_with), detector)
    with pytest.raises(InputError, match=r"overlap in \[0, 0.9\]"):
        PAGE.with_windows(detector, 24, 1.0)


@pytest.mark.parametrize("values", [[], [0.5], [1e-6, 2e-6, 0.4], [0.9999, 0.999999]])
def test_sliders_reach_both_sides_of_all_scores(values):
    low, high = (PAGE.threshold_at(position, values, 1.0) for position in (0, PAGE.STEPS))
    assert all(low < value < high for value in values)
    steps = [PAGE.threshold_at(position, values, 1.0) for position in range(PAGE.STEPS + 1)]
    assert steps == sorted(steps)
    for position in (0, 137, 500, PAGE.STEPS):
        assert abs(PAGE.position_of(PAGE.threshold_at(position, values, 1.0), values, 1.0) - position) <= 10
    assert PAGE.position_of(None, values, 1.0) == PAGE.STEPS


def test_thresholds_in_fields_keep_all_digits():
    assert VISITS.number_in("", 0.25) is None and VISITS.number_in(None, None) is None
    assert VISITS.number_in("0.123456789", 0.1234567890123) == 0.1234567890123 and VISITS.number_in(" 0.5 ", 0.1) == 0.5
    for wrong in ("much", "nan", "inf"):
        with pytest.raises(InputError, match="is no number"):
            VISITS.number_in(wrong, None)


def test_a_visit_keeps_what_was_said(detector, bad, broken, tmp_path):
    visits = VISITS.Visits(Calibration())
    visit = visits["a"]
    visit.keep(PAGE.look_at(detector, [*bad, broken]), {}, (None, 0.25))
    assert len(visit.readable()) == 2 and visit.chosen == visit.readable()[0].number and set(visit.small) == {0, 1}
    PAGE.write_masks(tmp_path / "masks.zip", visit.seen, visit.readable()[0].result.map_max - 1e-3)
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert archive.namelist() == ["000.png", "001.png"]
        mask = np.asarray(Image.open(io.BytesIO(archive.read(archive.namelist()[visit.chosen]))))
    assert mask.shape == (44, 60) and set(np.unique(mask)) == {0, 255}
    for key in "bcde":
        visits[key]
    assert list(visits.open) == list("bcde")
    visits.end("b")
    visits.end("unknown")
    assert list(visits.open) == list("cde")


def test_only_new_pictures_words_and_windows_run_the_model(detector, bad, monkeypatch):
    pytest.importorskip("gradio")
    calls = []
    counted = copy.copy(detector)
    counted.predict = lambda images: calls.append(len(images)) or detector.predict(images)
    blocks = APP.build_page(counted, Calibration(), "tiny")
    functions = {each.fn.__name__: each.fn for each in blocks.fns.values() if each.fn}
    request, asked = SimpleNamespace(session_hash="a"), [0, 0.25, "", "", "", "", 0.5]
    more = {"request": request, "progress": lambda *_, **__: None}
    functions["show"](bad, *asked, **more)
    assert len(calls) == 2
    text, *_ = functions["slide"](300, "", 0.5, request)
    functions["slide_map"](300, text, 0.5, request)
    functions["settle"](text, "0.5", 0.5, request)
    functions["redraw"](text, "0.5", 0.8, request)
    functions["save_table"](text, "0.5", request)
    functions["choose"](text, "0.5", 0.8, request, SimpleNamespace(index=1))
    functions["show"](None, *asked, **more)
    assert len(calls) == 2
    functions["leave"](request)
    functions["show"](bad, 24, *asked[1:], **more)
    assert len(calls) > 4


def test_names_are_not_markup():
    row = {"path": "<img src=x>.png", "score": 0.5, "decision": "", "p_value": None}
    assert "<img" not in VISITS.table([row]) and "<b>" not in VISITS.note("<b>")


# the program


def run_app(monkeypatch, *arguments) -> int:
    return run_main(monkeypatch, "app.py", APP.main, *arguments)


def test_help_is_quick():
    check_help("deploy/app.py", "--port", "torch", "numpy", "gradio", "PIL")


@pytest.fixture
def at_once(monkeypatch):
    """main() changes the signals and folders of its process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr("tempfile.tempdir", None)


def test_bad_arguments(monkeypatch, capsys, tmp_path, at_once):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_app(monkeypatch, "--model", "tiny", "--port", port) == 2
        check_error(capsys, rf"--port {port} cannot be used \(Address already in use\)")
    flags = ("--port", free_port())
    (tmp_path / "model.txt").touch()
    (tmp_path / "model.onnx").touch()
    for arguments, message in (
        ((tmp_path / "none.onnx",), "is no file; give model.onnx or epoch_N.pth"),
        ((tmp_path / "model.txt",), "is neither model.onnx nor epoch_N.pth"),
        ((tmp_path / "model.onnx", "--model", "tiny"), "--model does not go with model.onnx"),
        (("--host", "nowhere.invalid"), "--host nowhere.invalid --port"),
        (("--model", "tiny", "--calibration", tmp_path / "none.json"), "none.json"),
    ):
        assert run_app(monkeypatch, *arguments, *flags) == 2
        check_error(capsys, message)


def test_without_gradio(monkeypatch, capsys, at_once):
    monkeypatch.setattr(APP.importlib.util, "find_spec", lambda name: None)
    assert run_app(monkeypatch, "--model", "tiny", "--port", free_port()) == 2
    check_error(capsys, "needs gradio; pip install -r requirements/app.txt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class App:
    """The program as a process of its own, with a folder for all temporary files."""

    def __init__(self, temporary: Path, port: int, *arguments) -> None:
        temporary.mkdir(exist_ok=True)
        self.temporary, self.url = temporary, f"http://127.0.0.1:{port}"
        command = [sys.executable, ROOT / "deploy" / "app.py", "--model", "tiny", "--device", "cpu", "--port", port]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": temporary.parent}
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        environment = os.environ | {"TMPDIR": str(temporary)}
        self.process = subprocess.Popen(map(str, [*command, *arguments]), env=environment, **options)
        self.said = self.process.stdout.readline()
        assert self.said.startswith(self.url), self.said + self.process.stdout.read()

    def __enter__(self) -> "App":
        return self

    def __exit__(self, *_) -> None:
        """See that it has ended, whatever happened to the test."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def stop(self, number: int) -> str:
        """End it with a signal; what it said since."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    pytest.importorskip("gradio")
    with App(tmp_path_factory.mktemp("app") / "temporary", free_port()) as app:
        yield app
        app.stop(signal.SIGTERM)


def test_the_api(app, detector, bad, good, broken):
    client_of = pytest.importorskip("gradio_client")
    client = client_of.Client(app.url, verbose=False)
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/look", "/calibrate"}

    files = [client_of.handle_file(path) for path in [*bad, broken]]
    own = Predictor(model="tiny", device="cpu")
    rows = client.predict(files=files, threshold=0.0, api_name="/look")
    assert [row.get("score") for row in rows] == pytest.approx([own(path).score for path in bad] + [None], abs=1e-6)
    assert rows[0]["decision"] == "anomalous" and "anomalous_share" not in rows[0] and rows[2]["error"]

    made = client.predict(files=[client_of.handle_file(path) for path in good], api_name="/calibrate")
    assert made["n"] == 20 and made["made_with"] == json.loads(json.dumps(own.made_with))
    flags = {"pixel_threshold": made["pixel_threshold"], "normal": "a photo", "abnormal": "a broken photo"}
    rows = client.predict(files=files[:1], threshold=made["threshold"], tile=24, **flags, api_name="/look")
    assert rows[0]["tile_max"] and rows[0]["own_score"] and rows[0]["regions"] == len(rows[0]["outlines"])

    with pytest.raises(client_of.exceptions.AppError, match="need at least 19 good pictures, and there are 3"):
        client.predict(files=files, api_name="/calibrate")


def test_only_uploads_are_read(app):
    """Whatever a request says, no other file of the machine is looked at."""
    httpx = pytest.importorskip("httpx")
    other = str(ROOT / "docs" / "panels.png")
    for files in ([{"path": other, "meta": {"_type": "gradio.FileData"}}], [{"path": other}], [other], [None], other):
        asked = httpx.post(f"{app.url}/gradio_api/call/look", json={"data": [files, None, None, 0, 0.25, "", ""]})
        answer = httpx.get(f"{app.url}/gradio_api/call/look/{asked.json()['event_id']}").text
        assert "event: error" in answer and "panels" not in answer
    assert httpx.get(f"{app.url}/gradio_api/file={other}").status_code == 403


def test_enormous_files_are_refused(app, tmp_path):
    httpx = pytest.importorskip("httpx")
    with open(tmp_path / "enormous.png", "wb+") as file:
        file.truncate(APP.MAX_FILE + 1)
        answer = httpx.post(f"{app.url}/gradio_api/upload", files={"files": file}, timeout=60)
    assert answer.status_code == 413 and "size exceeded" in answer.text


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright; pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(app, browser):
    """A page that was opened; at the end there were no errors in its console and no requests to elsewhere."""
    page = browser.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(app.url)
    page.wait_for_selector("#files input[type=file]", state="attached")
    yield page
    page.close()
    assert not errors
    assert requests and all(url.startswith((app.url, "data:", "blob:")) for url in requests), requests


def wait_for_text(page, place: str, pattern: str) -> str:
    """The text of a part of the page as soon as it matches."""
    end = time.monotonic() + 30
    while not re.search(pattern, page.inner_text(place)):
        assert time.monotonic() < end, page.inner_text(place)
        page.wait_for_timeout(50)
    return page.inner_text(place)


def fill(page, place: str, text: str) -> None:
    """Fill in a field; again if it was just being unfolded, which sets it back."""
    end = time.monotonic() + 30
    while page.input_value(place) != text:
        assert time.monotonic() < end
        page.fill(place, text)
        page.wait_for_timeout(500)


def slide_to(page, place: str, value: float) -> None:
    """Move a slider."""
    page.eval_on_selector(
        f"{place} input[type=range]",
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def test_the_page(page, bad, good, broken):
    page.set_input_files("#files input[type=file]", [*bad, broken])
    assert "notes.png: cannot be read as an image" in wait_for_text(page, "#said", "2 pictures; no decisions yet")
    wait_for_text(page, "#rows", r"00\d.png\s+0\.\d+")
    page.wait_for_selector("#heat img")

    slide_to(page, "#score-slider", 0)
    wait_for_text(page, "#said", "2 pictures, 2 anomalous")
    slide_to(page, "#score-slider", PAGE.STEPS)
    wait_for_text(page, "#said", "2 pictures, 0 anomalous")
    page.fill("#score textarea, #score input", "1e-6")
    page.press("#score textarea, #score input", "Enter")
    wait_for_text(page, "#said", "2 pictures, 2 anomalous")
    before = page.get_attribute("#heat img", "src")
    slide_to(page, "#strength", 0.9)
    page.wait_for_function("before => document.querySelector('#heat img').src != before", arg=before)

    page.get_by_text("Calibrate with good pictures").first.click()
    page.set_input_files("#good input[type=file]", good[:3])
    wait_for_text(page, "#made", "need at least 19 good pictures, and there are 3")
    page.wait_for_selector("#good input[type=file]", state="attached")
    page.set_input_files("#good input[type=file]", good)
    wait_for_text(page, "#made", "From 20 good pictures")
    wait_for_text(page, "#rows", r"(?s)p-value.*0\.0476")

    page.get_by_text("Your own words").first.click()
    fill(page, "#normal textarea", "a photo of a clean plate")
    fill(page, "#abnormal textarea", "a photo of a plate with a spot\na spot")
    page.click("#compare")
    wait_for_text(page, "#rows", "own words")
    page.wait_for_selector("#own img")

    with page.expect_download() as download:
        page.click("#csv")
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert download.value.suggested_filename == "predictions.csv" and [row["path"] for row in table][2] == "notes.png"
    assert float(table[0]["p_value"]) == pytest.approx(1 / 21, rel=1e-4) and table[0]["own_score"] and table[2]["error"]
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == ["000.png", "001.png"]


def test_the_page_with_windows(page, bad):
    page.set_input_files("#files input[type=file]", bad)
    wait_for_text(page, "#said", "2 pictures")
    before = wait_for_text(page, "#rows", r"0\.\d+")
    page.get_by_text("Windows for large pictures").first.click()
    fill(page, "#tile input", "24")
    page.click("#again")
    page.wait_for_function("before => document.querySelector('#rows').innerText != before", arg=before)


def test_stopped_it_leaves_nothing_and_starts_again(bad, tmp_path):
    """By Ctrl-C while a picture is under way, then by SIGTERM, on the same port."""
    client_of = pytest.importorskip("gradio_client")
    port = free_port()
    for number in (signal.SIGINT, signal.SIGTERM):
        with App(tmp_path / "temporary", port) as app:
            client = client_of.Client(app.url, verbose=False)
            assert len(client.predict(files=[client_of.handle_file(bad[0])], api_name="/look")) == 1
            assert list((tmp_path / "temporary").rglob("000.png"))
            if number == signal.SIGINT:
                client.submit(files=[client_of.handle_file(bad[0])], tile=2, overlap=0.5, api_name="/look")
                time.sleep(1)
            assert app.stop(number) == ""
            assert not list((tmp_path / "temporary").iterdir())
