"""deploy/decisions.py: p-values, the promise about false alarms, the best F1, and the file of a calibration."""

import json
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import f1_score

from deploy import decisions
from utils import InputError


def test_p_values_written_out():
    calibration = decisions.from_normals([0.1, 0.4, 0.4, 0.8], [1, 2, 3, 4], 2.0, 0.2)
    for score in (0, 0.1, 0.25, 0.4, 0.5, 0.8, 0.9):
        at_least = sum(value >= score for value in (0.1, 0.4, 0.4, 0.8))
        assert calibration.p_value(score) == (1 + at_least) / 5
    assert decisions.Calibration().p_value(0.5) is None and decisions.Calibration().decide(0.5) == ""


@pytest.mark.parametrize("false_alarms", [0.05, 0.07, 0.1, 0.2, 0.29, 0.5])
@pytest.mark.parametrize("n", [19, 20, 37, 99, 100])
def test_a_score_is_above_the_threshold_exactly_if_its_p_value_is_at_most_the_share(n, false_alarms):
    stream = np.random.RandomState(n)
    scores = np.round(stream.rand(n), 2).tolist()  # with ties
    calibration = decisions.from_normals(scores, scores, 0.5, false_alarms)
    for score in np.linspace(-0.01, 1.01, 103).round(2):
        below = Fraction(1 + sum(value >= score for value in scores), n + 1) <= Fraction(str(false_alarms))
        assert calibration.decide(score) == ("anomalous" if below else "normal")


@pytest.mark.parametrize("false_alarms", [0.05, 0.1, 0.2])
def test_the_promise_holds_on_average(false_alarms):
    """Any distribution, many calibrations: the mean share of false alarms is at most what was allowed, and near it."""
    stream = np.random.RandomState(0)
    shares = []
    for _ in range(2000):
        values = stream.lognormal(size=39 + 50)
        calibration = decisions.from_normals(values[:39].tolist(), values[:39].tolist(), 0, false_alarms)
        shares.append(np.mean([calibration.decide(value) == "anomalous" for value in values[39:]]))
    assert false_alarms - 0.03 < np.mean(shares) < false_alarms + 0.005


@pytest.mark.parametrize(("false_alarms", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.3, 3), (0.5, 1), (0.07, 14)])
def test_how_many_normal_pictures_are_needed(false_alarms, needed):
    assert decisions.pictures_needed(false_alarms) == needed
    values = list(range(needed))
    assert decisions.threshold_of_normals(values, false_alarms) == needed - 1
    with pytest.raises(InputError, match=f"needs at least {needed} normal pictures, and there are {needed - 1}"):
        decisions.threshold_of_normals(values[1:], false_alarms)


@pytest.mark.parametrize("seed", range(6))
def test_best_f1_is_that_of_all_thresholds(seed):
    stream = np.random.RandomState(seed)
    labels = stream.randint(0, 2, 60)
    scores = np.round(labels * 0.3 + stream.rand(60), 1 if seed % 2 else 8)
    values = np.unique(scores)
    counts = [np.bincount(np.searchsorted(values, scores[labels == kind]), minlength=len(values)) for kind in (1, 0)]
    threshold, f1 = decisions.best_f1(values, *counts)
    every = [f1_score(labels, scores >= value) for value in values]
    assert f1 == pytest.approx(max(every)) and f1_score(labels, scores > threshold) == pytest.approx(f1)


def test_best_f1_of_scores_without_information():
    threshold, f1 = decisions.best_f1(np.array([0.5]), np.array([3]), np.array([5]))
    assert threshold < 0.5 and f1 == pytest.approx(2 * 3 / (3 + 5 + 3))


def test_a_calibration_survives_its_file(tmp_path):
    made = decisions.from_normals([0.2, 0.1, 0.3], [1.5, 1.0, 2.0], 0.7, 0.5, {"model": "tiny", "tile": None})
    decisions.write_calibration(tmp_path / "calibration.json", made)
    assert decisions.read_calibration(tmp_path / "calibration.json") == made
    assert made.normal_scores == [0.1, 0.2, 0.3]
    decisions.check_made_with(made, {"model": "tiny", "tile": None}, "FILE")
    for other in ({"model": "ViT", "tile": None}, {"model": "tiny", "tile": 3}, {}):
        with pytest.raises(InputError, match="^FILE was made with"):
            decisions.check_made_with(made, other, "FILE")


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": "0.5"},
        {"threshold": float("nan")},
        {"normal_scores": [1, None]},
        {"normal_scores": 3},
        {"made": "somehow"},
        {"made_with": []},
        {"n": True},
        {"more": 1},
    ],
)
def test_files_that_are_not_calibrations(tmp_path, change):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(asdict(decisions.from_normals([0.1], [0.2], 0.1, 0.5)) | change))
    with pytest.raises(InputError, match="is not a calibration of predict.py"):
        decisions.read_calibration(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_files_that_are_not_json_objects(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match="c.json"):
        decisions.read_calibration(tmp_path / "c.json")
    with pytest.raises(InputError, match="none.json: No such file"):
        decisions.read_calibration(tmp_path / "none.json")
