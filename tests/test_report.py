"""deploy/report.py: one file that needs nothing else, whatever the names hold; curves against scikit-learn."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score

from deploy import report


def read_data(path) -> dict:
    """The data in a report, as the browser reads it."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE).group(1))


def test_the_data_are_in_the_page(tmp_path):
    made = report.Report("title", {"method": "clip"}, 0.5, [0.1, 0.2])
    made.add("a/1.png", "a", 0.75, thumbnail=lambda: b"JPEG", size=4, p_value=0.1, regions=2, file="overlays/a/1.png")
    made.add("b.png", "", None, error="cannot be read")
    made.write(tmp_path / "report.html")
    data = read_data(tmp_path / "report.html")
    assert data["title"] == "title" and data["threshold"] == 0.5 and data["normal_scores"] == [0.1, 0.2]
    columns = data["columns"]
    assert columns["name"] == ["a/1.png", "b.png"] and columns["score"] == [0.75, None]
    assert columns["error"] == [None, "cannot be read"] and "label" not in columns
    assert data["thumbnails"] == {"0": "SlBFRw=="}


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    made = report.Report("t", {})
    made.add("a.png", "", 0.5)
    made.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"']?http|@import|url\(|fetch\(|<link", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "<!--", "\u2028x", "&amp;", "bad\udcff.png", '"\\']
)
def test_names_cannot_leave_their_string(tmp_path, name):
    made = report.Report(name.encode("utf-8", "replace").decode(), {"x": "</script>"})
    made.add(name, name.encode("utf-8", "replace").decode(), 0.5)
    made.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 1 and "<!--" not in text and "\u2028" not in text
    assert read_data(tmp_path / "report.html")["columns"]["name"] == [name.encode("utf-8", "backslashreplace").decode()]


def test_the_most_telling_pictures_get_the_thumbnails(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_REPORT", 25)
    made = report.Report("t", {})
    for score in (0.1, 0.9, 0.5, 0.7):
        made.add(f"{score}.png", "", score, thumbnail=lambda: b"0123456789", size=10)
    made.write(tmp_path / "report.html")
    assert set(read_data(tmp_path / "report.html")["thumbnails"]) == {"1", "3"}
    labelled = report.Report("t", {})
    for score, label in ((0.1, 1), (0.9, 1), (0.5, 0), (0.2, 0)):
        labelled.add(f"{score}.png", "", score, thumbnail=lambda: b"0123456789", size=10, label=label)
    labelled.write(tmp_path / "report.html")
    assert set(read_data(tmp_path / "report.html")["thumbnails"]) == {"2", "3"}  # false alarm first, then the miss


def thinned_curves(labels, scores) -> dict[str, list]:
    return {kind: report.thinned(points) for kind, points in report.curves(labels, scores).items()}


@pytest.mark.parametrize("ties", [False, True])
def test_curves_are_scikit_learns(ties):
    stream = np.random.RandomState(0)
    labels = stream.randint(0, 2, 120)
    scores = labels * 0.4 + stream.rand(120)
    scores = scores.round(1) if ties else scores
    made = thinned_curves(labels, scores)
    roc = np.array(made["roc"])
    assert auc(roc[:, 0], roc[:, 1]) == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    precision, recall, _ = precision_recall_curve(labels, scores)
    expected = set(zip(recall.round(3), precision.round(3), strict=True)) - {(0.0, 1.0)}
    assert {tuple(point) for point in made["precision_recall"][1:]} <= expected
    many = thinned_curves(stream.randint(0, 2, 10_000), stream.rand(10_000))
    assert len(many["roc"]) <= report.CURVE_POINTS and many["roc"][0] == [0, 0] and many["roc"][-1] == [1, 1]


def test_a_class_with_one_label_has_no_curve():
    made = report.Report("t", {})
    made.add_curves("a", np.array([1, 1]), np.array([0.1, 0.2]))
    assert made.curves == {}
