"""scripts/compare.py: metrics of draws against scikit-learn and metrics.py, how often it errs, groups, bad runs."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import check_error, check_help, run, run_main, squeeze
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score

import metrics
from dataset import AnomalyDataset
from deploy.maps import map_to_uint16, write_image
from evaluation import METRICS, MORE_METRICS, SCORES
from scripts import compare

LABELS = np.tile([0, 1], 30)


def run_compare(monkeypatch, *arguments) -> int:
    return run_main(monkeypatch, "compare.py", compare.main, *arguments)


def write_run(folder: Path, scores: dict[str, np.ndarray], labels: np.ndarray = LABELS, **changes) -> Path:
    """A run folder without maps; scores: of the images of each class, all of which have the same labels."""
    folder.mkdir(parents=True)
    record = {"dataset": "fake", "split": "test", "data_checksum": "0" * 64, "settings": {"image_size": 24}}
    (folder / "metrics.json").write_text(json.dumps(record | changes))
    (folder / "args.json").write_text(json.dumps({"arguments": {"save_maps": False}}))
    with open(folder / "scores.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SCORES)
        for name, values in scores.items():
            for number, (label, score) in enumerate(zip(labels.tolist(), values.tolist(), strict=True)):
                writer.writerow((f"{name}/{number} ö,.png", name, "", label, score, score))
    return folder


def some_scores(seed: int, gap: float = 1.0, noise: float = 0.0) -> dict[str, np.ndarray]:
    """Scores of two classes: the same for all seeds but for the noise; anomalous ones are higher by `gap`."""
    shared, stream = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        name: shared.normal(size=60) + gap * LABELS + noise * stream.normal(size=60) for name in ("nut, big", "tile")
    }


def as_run(scores: np.ndarray, labels: np.ndarray = LABELS) -> compare.Run:
    paths = [str(number) for number in range(len(labels))]
    return compare.Run(Path("run"), {}, paths, ["one"] * len(labels), labels.tolist(), scores.tolist(), scores.tolist())


REFERENCES = {name: getattr(metrics, name) for name in compare.IMAGE_LEVEL}


# metrics of draws


def test_draws_keep_the_numbers_of_each_label():
    labels = np.array([0, 1, 1, 0, 1])
    drawn = compare.draw(labels, 500, seed=[3])
    assert drawn.shape == (501, 5) and (drawn[0] == 1).all()
    assert (drawn[:, labels == 0].sum(1) == 2).all() and (drawn[:, labels == 1].sum(1) == 3).all()
    assert np.allclose(drawn[1:].mean(0), 1, atol=0.15)
    assert np.array_equal(drawn, compare.draw(labels, 500, seed=[3]))
    assert not np.array_equal(drawn, compare.draw(labels, 500, seed=[4]))


@pytest.mark.parametrize("decimals", [1, 8])  # with ties and without
def test_image_metrics_of_draws_are_scikit_learns(decimals):
    runs = [as_run(np.random.default_rng(seed).normal(LABELS).round(decimals)) for seed in range(2)]
    weights = {"one": compare.draw(LABELS, 150, seed=[0])}
    values = compare.image_values(runs, weights)
    for place, one in enumerate(runs):
        for number, counts in enumerate(weights["one"].astype(int)):
            labels, scores = (np.repeat(each, counts) for each in (one.labels, one.scores))
            for name, reference in REFERENCES.items():
                got = values[name][place, 0, number]
                assert got == pytest.approx(100 * reference(labels, scores), abs=1e-9)
            for name, reference in (("auroc", roc_auc_score), ("ap", average_precision_score)):
                got = values[f"image_{name}"][place, 0, number]
                assert got == pytest.approx(100 * reference(one.labels, one.scores, sample_weight=counts), abs=1e-9)


def test_all_metrics_of_test_py_are_known():
    """A metric that test.py gets has to be compared, too."""
    written = {name for names in METRICS.values() for name in names} | {*MORE_METRICS, "pixel_aupro_exact"}
    assert written == {*compare.IMAGE_LEVEL, *compare.PIXEL_LEVEL}


def some_maps(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[compare.Pixels]]:
    """Masks (8, 20, 20) of two images without and six with regions, maps with these levels (uint16), and `Pixels`."""
    stream = np.random.default_rng(1)
    masks = np.zeros((8, 20, 20), bool)
    for number in range(2, 8):
        masks[number, 2 : 4 + number, 3:9] = masks[number, 15:18, 12 : 14 + number] = True
    maps = stream.choice(levels[: len(levels) * 2 // 3], masks.shape)
    maps[masks] = stream.choice(levels[len(levels) // 3 :], masks.sum())
    maps[1, 0, :2] = maps[2, 0, :2] = levels[0], levels[-1]
    regions = [ndimage.label(mask, metrics.EIGHT_NEIGHBOURS)[0][mask] - 1 for mask in masks]
    pixels = [compare.Pixels(m[~k], m[k], r) for m, k, r in zip(maps, masks, regions, strict=True)]
    return masks, maps, pixels


def pixel_references(masks: np.ndarray, maps: np.ndarray) -> dict[str, float | None]:
    maps = maps.astype(np.float32) / 65535
    return {name: getattr(metrics, name)(masks, maps) for name in compare.PIXEL_LEVEL}


def test_pixel_metrics_of_draws_are_those_of_metrics_py():
    """Few levels, each in a bin of its own, so exact."""
    masks, maps, pixels = some_maps(np.arange(40, dtype=np.uint16) * 1500 + 77)
    weights = compare.draw(masks.any((1, 2)).astype(int), 60, seed=[0])
    values = compare.pixel_metrics(pixels, weights)
    for number, counts in enumerate(weights.astype(int)):
        some = np.repeat(np.arange(8), counts)
        for name, reference in pixel_references(masks[some], maps[some]).items():
            assert values[name][number] == pytest.approx(reference, abs=1e-6), name


def test_pixels_in_bins_are_off_by_little():
    masks, maps, pixels = some_maps(np.arange(65536, dtype=np.uint16))
    values = compare.pixel_metrics(pixels, np.ones((1, 8)))
    for name, reference in pixel_references(masks, maps).items():
        assert values[name][0] == pytest.approx(reference, abs=1e-3), name


def test_pixel_metrics_that_do_not_exist():
    """Constant maps have no AUPRO; without anomalous pixels there is nothing."""
    _, _, pixels = some_maps(np.array([5, 5, 5], np.uint16))
    values = compare.pixel_metrics(pixels, np.ones((2, 8)))
    assert np.isnan(values["pixel_aupro"]).all() and (values["pixel_auroc"] == 0.5).all()
    assert all(np.isnan(each).all() for each in compare.pixel_metrics(pixels[:2], np.ones((2, 2))).values())
    bins = np.r_[0, 1, np.full(65534, 2)]  # no FPR below 0.3 is met: nearly all normal pixels have the highest value
    high = np.array([[1.0, 0, 9]]), np.array([[0.0, 0, 1]])
    assert np.isnan(compare.aupro(*high, bins, np.array([0]), np.array([2]))).all()


# verdicts


def test_of_runs_that_differ_by_chance_few_are_called_different():
    """95 % intervals of 100 pairs of runs with the same noise; about 5 exclude 0."""
    wrong = dict.fromkeys(compare.IMAGE_LEVEL, 0)
    for pair in range(100):
        stream = np.random.default_rng(pair)
        shared = stream.normal(1.5 * LABELS)
        runs = [as_run(shared + 0.7 * stream.normal(size=60)) for _ in range(2)]
        values = compare.image_values(runs, {"one": compare.draw(LABELS, 400, [pair])})
        groups = [compare.Group(str(place), runs[place : place + 1], [place]) for place in range(2)]
        for name, found in compare.compare(values, ["one"], *groups).items():
            wrong[name] += found["mean"]["verdict"] == compare.NO_CHANCE
    assert all(count <= 11 for count in wrong.values()), wrong  # more has a probability below 1 %
    assert sum(wrong.values()) > 2, wrong


def test_welch_is_scipys():
    one, two = np.array([90.0, 91.0, 93.5]), np.array([92.0, 92.5])
    assert compare.welch(one, two) == pytest.approx(stats.ttest_ind(one, two, equal_var=False).pvalue, rel=1e-9)
    assert compare.welch(one, two[:1]) is None
    assert compare.welch(np.ones(2), np.ones(2)) == 1 and compare.welch(np.ones(2), 2 * np.ones(2)) == 0


def test_a_better_run_and_the_same_one(tmp_path, monkeypatch, capsys):
    worse, better = write_run(tmp_path / "worse", some_scores(0)), write_run(tmp_path / "better", some_scores(0, 2.5))
    same = write_run(tmp_path / "same", some_scores(0))
    output = tmp_path / "new" / "out.md"
    names = ("--names", "worse", "better", "same")
    assert run_compare(monkeypatch, worse, better, same, *names, "--output", output) == 0
    text = output.read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"{text}\nWritten: {output} {output.with_suffix('.json')}\n"
    assert sorted(output.parent.iterdir()) == [output.with_suffix(".json"), output]
    lines = squeeze(text).splitlines()
    assert lines[0] == "# Difference from worse on fake (test split, 120 images)"
    assert lines[2] == "## better" and "Mean over 2 classes:" in lines
    number = r"[+-]\d+\.\d\d"
    summary = next(line for line in lines if line.startswith("- image_auroc"))
    words = (
        rf"- image_auroc: \d\d\.\d\d -> \d\d\.\d\d, \+\d+\.\d\d \(95 % interval {number} to {number}, p < 0\.001\): "
    )
    assert re.fullmatch(words + "unlikely to be chance", summary)
    assert any(re.match(rf"\| nut, big \| {number} \({number} to {number}\) \* \|", line) for line in lines)
    assert "| tile | 0.00 | 0.00 | 0.00 |" in lines
    assert text.count("no difference") == 3 and "could be chance" in text
    assert "Pixel metrics are left out: " in text and "worse was made without --save_maps." in text
    assert "another seed of the same training may differ by as much" in text

    content = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["images"] == 120 and content["baseline"] == {"name": "worse", "runs": [str(worse)]}
    for group, verdict in zip(content["compared"], ("unlikely to be chance", "no difference"), strict=True):
        for name, found in group["metrics"].items():
            for class_name, cell in found["classes"].items():
                scores = some_scores(0, 2.5 if group["name"] == "better" else 1.0)[class_name]
                assert cell["value"] == pytest.approx(100 * REFERENCES[name](LABELS, scores), abs=1e-9)
                assert cell["low"] <= cell["difference"] <= cell["high"] and 0 < cell["p"] <= 1
            assert found["mean"]["verdict"] == verdict
            assert found["mean"]["value"] == pytest.approx(np.mean([c["value"] for c in found["classes"].values()]))
            if verdict == "no difference":
                assert found["mean"]["low"] == found["mean"]["high"] == 0 and found["mean"]["p"] == 1


def test_seeds_of_two_trainings(tmp_path, monkeypatch):
    gaps = {"old": (1.0, 1.1, 0.9), "new": (2.4, 2.5, 2.6)}
    folders = {
        name: [write_run(tmp_path / f"{name}{i}", some_scores(i, gap, 0.1)) for i, gap in enumerate(gaps[name])]
        for name in gaps
    }
    output = tmp_path / "out.md"
    groups = (*folders["new"], "--against", *folders["old"])
    assert run_compare(monkeypatch, *groups, "--names", "new", "old", "--output", output) == 0
    content = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    cell = content["compared"][0]["metrics"]["image_auroc"]["mean"]
    for name, key in (("old", "baseline"), ("new", "value")):
        means = [
            np.mean([100 * roc_auc_score(LABELS, scores) for scores in some_scores(i, gap, 0.1).values()])
            for i, gap in enumerate(gaps[name])
        ]
        assert cell[key] == pytest.approx(np.mean(means)) and cell[f"{key}_std"] == pytest.approx(np.std(means, ddof=1))
    assert content["compared"][0]["name"] == "new" and content["baseline"]["name"] == "old"
    assert cell["difference"] > 0 and cell["low"] > 0 and cell["verdict"] == "unlikely to be chance"
    text = squeeze(output.read_text(encoding="utf-8"))
    assert f"image_auroc: {cell['baseline']:.2f} ± {cell['baseline_std']:.2f} -> " in text
    assert "| old | image_auroc | image_ap | image_f1_max |" in text and "± standard deviation" in text
    assert "another seed" not in text and "Welch's t-test" in text


def test_seeds_that_differ_much_could_be_chance():
    """The images tell two groups apart that their seeds do not."""
    stream = np.random.default_rng(0)
    base, other = (np.repeat(means, 201, axis=1) for means in ([[80.0], [90.0]], [[83.0], [93.0]]))
    other[:, 1:] += stream.normal(size=200)
    assert compare.facts(base, other)["verdict"] == "could be chance of the seeds"
    assert compare.facts(base[:1], other[:1])["verdict"] == "unlikely to be chance"


def test_classes_of_one_label_and_with_few_images(tmp_path, monkeypatch, capsys):
    labels = np.array([1] * 6 + [0] * 4)
    scores = {"a": np.arange(10.0), "only": np.arange(10.0)}
    runs = [
        write_run(tmp_path / name, {k: v * sign for k, v in scores.items()}, labels)
        for name, sign in (("x", 1), ("y", -1))
    ]
    for folder in runs:
        rows = (folder / "scores.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "scores.csv").write_text("".join(rows[:-4]), encoding="utf-8")  # `only` loses its normal images
    assert run_compare(monkeypatch, *runs) == 0
    text = squeeze(capsys.readouterr().out)
    assert "| only | - | - | - |" in text and "One class:" in text
    assert "Left out of the mean of image_auroc, image_ap, image_f1_max: only." in text
    assert "Fewer than 10 images of a kind in 2 of 2 classes (a: 4 normal): intervals too short." in text


# pixels of run folders


def with_maps(folder: Path, data: Path, noise: float) -> Path:
    """A run with maps: those of the masks, with noise; their maxima are the scores."""
    dataset, stream = AnomalyDataset(data), np.random.default_rng(0)
    (folder / "maps").mkdir(parents=True)
    rows = []
    for index, entry in enumerate(dataset.entries):
        values = 0.5 * dataset.mask(index, 24) + noise * stream.random((24, 24))
        write_image((folder / "maps" / entry.image_path).with_suffix(".png"), map_to_uint16(values, 1))
        rows.append((entry.image_path, entry.class_name, entry.specie, entry.label, values.max(), values.max()))
    with open(folder / "scores.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([SCORES, *rows])
    tested = {"dataset": "fake", "split": "test", "data_checksum": dataset.checksum, "settings": {"image_size": 24}}
    arguments = {"data_path": str(data), "save_maps": True}
    (folder / "args.json").write_text(json.dumps({"arguments": arguments, **tested}))
    (folder / "metrics.json").write_text(json.dumps(tested))
    return folder


def test_pixel_metrics_of_runs_with_maps(data, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    clean, noisy = with_maps(tmp_path / "clean", copy, 0.1), with_maps(tmp_path / "noisy", copy, 0.9)
    assert run_compare(monkeypatch, clean, noisy) == 0
    text = squeeze(capsys.readouterr().out)
    assert "| pixel level | pixel_auroc | pixel_aupro | pixel_aupro_exact | pixel_ap | pixel_f1_max | aupimo |" in text
    assert re.search(r"- pixel_ap: 100\.00 -> \d\d\.\d\d, -.*: unlikely to be chance", text)
    assert run_compare(monkeypatch, clean, noisy, "--metrics", "image-level") == 0
    text = capsys.readouterr().out
    assert "pixel_auroc" not in text and "image_auroc" in text and "left out" not in text

    def left_out(reason):
        assert run_compare(monkeypatch, clean, noisy) == 0
        text = capsys.readouterr().out
        assert re.search(rf"Pixel metrics are left out: .*{reason}.*\.  \n", text) and "pixel_auroc" not in text

    record = json.loads((noisy / "args.json").read_text())
    (noisy / "args.json").write_text(json.dumps(record | {"arguments": record["arguments"] | {"save_maps": False}}))
    left_out("noisy was made without --save_maps")
    with open(copy / "tile" / "test" / "0 ö.png", "ab") as file:
        file.write(b" ")
    left_out("has changed since .*clean was made")
    shutil.rmtree(copy)
    left_out("No such file")
    (clean / "args.json").write_text(json.dumps({"arguments": []}))
    left_out(r"clean/args\.json is not as test\.py writes it")


def test_maps_of_another_run_are_refused(data, tmp_path, monkeypatch, capsys):
    one, two = with_maps(tmp_path / "one", data, 0.1), with_maps(tmp_path / "two", data, 0.9)
    name = "maps/tile/test/0 ö.png"
    shutil.copy(one / name, two / name)
    assert run_compare(monkeypatch, one, two) == 2
    check_error(capsys, r"two/maps/tile/test/0 ö\.png is not the map of which scores\.csv tells the maximum; run")
    (two / name).unlink()
    assert run_compare(monkeypatch, one, two) == 2
    check_error(capsys, r"0 ö\.png: is missing or damaged")


def test_runs_of_test_py(data, tmp_path, monkeypatch):
    """What is read of a run is what test.py measured."""
    common = ("--data_path", data, "--model", "tiny", "--num_workers", 0, "--device", "cpu")
    more = ("--save_maps", "--exact_aupro", "--more_metrics", "--prompt", "hand-written")
    for name, sigma in (("a", 4), ("b", 1)):
        assert run(monkeypatch, "test", *common, *more, "--sigma", sigma, "--save_path", tmp_path / name) == 0
    output = tmp_path / "out.md"
    assert run_compare(monkeypatch, tmp_path / "a", tmp_path / "b", "--output", output, "--draws", 100) == 0
    found = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["compared"][0]["metrics"]
    for name, key in (("a", "baseline"), ("b", "value")):
        record = json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))
        assert len(record["mean"]) == 9
        for metric in record["mean"]:
            tolerance = 1e-9 if metric.startswith("image") else {"pixel_aupro": 0.4, "aupimo": 0.2}.get(metric, 0.05)
            for class_name, values in record["classes"].items():
                assert found[metric]["classes"][class_name][key] == pytest.approx(values[metric], abs=tolerance)
            assert found[metric]["mean"][key] == pytest.approx(record["mean"][metric], abs=tolerance)


# refusals


def test_runs_of_other_images_are_refused(tmp_path, monkeypatch, capsys):
    first = write_run(tmp_path / "first", some_scores(0))
    others = {
        "fewer": ({"tile": some_scores(0)["tile"]}, {}, r"first has the image nut, big/0 ö,\.png and .*fewer has not"),
        "more": (some_scores(0) | {"x": LABELS}, {}, r"more has the image x/0 ö,\.png and .*first has not"),
        "order": (dict(reversed(some_scores(0).items())), {}, "differ in the paths, nut, big/0 .* and tile/0"),
        "labels": (some_scores(0), {"labels": 1 - LABELS}, r"differ in the labels, 0 and 1 \(nut, big/0"),
        "data": (
            some_scores(0),
            {"data_checksum": "1" * 64},
            "differ in the data_checksum, 0{12} and 1{12}: images or",
        ),
        "split": (some_scores(0), {"split": "train"}, "differ in the split, test and train"),
    }
    for name, (scores, changes, message) in others.items():
        assert run_compare(monkeypatch, first, write_run(tmp_path / name, scores, **changes)) == 2
        check_error(capsys, message)


def test_bad_command_lines_and_runs(tmp_path, monkeypatch, capsys):
    a, b, c = (write_run(tmp_path / name, some_scores(0)) for name in "abc")
    bad = write_run(tmp_path / "bad", some_scores(0), settings={"image_size": 48})

    def refused(message, *arguments):
        assert run_compare(monkeypatch, *arguments, "--output", tmp_path / "out.md") == 2
        check_error(capsys, message)
        assert not (tmp_path / "out.md").exists()

    refused("one run is given", a)
    refused("b is given twice", a, b, tmp_path / "." / "b")
    refused("a is given twice", a, "--against", a)
    refused("--names: 1 given for 2 runs", a, b, "--names", "x")
    refused("--names: 3 given for 2 groups", a, b, "--against", c, "--names", "x", "y", "z")
    refused("two runs have one name", a, b, "--names", "x", "x")
    refused(r"no seeds of one training, they differ in image_size \(24 and 48\)", a, bad, "--against", b)
    assert run_compare(monkeypatch, a, bad) == 0 and "Differs in image_size (24 and 48)." in capsys.readouterr().out
    for draws in ("99", "x"):
        assert run_compare(monkeypatch, a, b, "--draws", draws) == 2
    assert run_compare(monkeypatch, a, b, "--output", tmp_path / "out.txt") == 2
    check_error(capsys, r"out\.txt must end in \.md")

    scores = (bad / "scores.csv").read_text(encoding="utf-8")
    for old, new in (("map_max", "max"), (",0,", ",2,"), (",0,", ",0,nan"), ("\n", "\n\x00\n"), (scores, "")):
        (bad / "scores.csv").write_text(scores.replace(old, new), encoding="utf-8")
        refused(r"bad/scores\.csv is not as test\.py writes it", a, bad)
    (bad / "scores.csv").write_bytes(b"\xff")
    refused(r"bad/scores\.csv is not as test\.py writes it", a, bad)
    (bad / "scores.csv").unlink()
    refused(r"bad has no scores\.csv, it is of an earlier test\.py", a, bad)
    (bad / "finished_classes.json").touch()
    refused("bad: its test was interrupted", a, bad)
    (bad / "finished_classes.json").unlink()
    (bad / "scores.csv").touch()
    (bad / "metrics.json").write_text("{}")
    refused(r"bad/metrics\.json lacks", a, bad)
    (bad / "metrics.json").unlink()
    refused(r"bad is not a finished run of test\.py", a, bad)
    refused(r"nowhere is not a finished run of test\.py", a, tmp_path / "nowhere")

    for folder in (a, b):
        (folder / "scores.csv").write_text("".join(re.sub(",0,", ",1,", scores)), encoding="utf-8")
    refused("no class has both normal and anomalous images", a, b)


def test_help_is_quick():
    check_help("scripts/compare.py", "--against", "torch", "numpy", "PIL", "tabulate", "tqdm")
