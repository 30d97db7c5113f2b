"""scripts/paper/read_results.py: results read into the paper's layout, beside the paper's figures; bad results."""

import json
from pathlib import Path

import pytest
from helpers import ROOT, check_help, run_main, squeeze

from scripts.paper import read_results
from scripts.paper.tables import ALL_LEVELS, LEVELS, NEWER, TABLES, levels_of

PUBLISHED = json.loads((ROOT / "scripts" / "paper" / "paper_results.json").read_text(encoding="utf-8"))


METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")


def write_run(results: Path, variant: str, key: str, values: tuple, seed: int = 111, **changes) -> Path:
    """metrics.json as test.py writes it, with what is read from it; values: of METRICS."""
    path = results / variant / f"seed{seed}" / key / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"dataset": key, "mean": dict(zip(METRICS, values, strict=True))} | changes))
    return path


def read(monkeypatch, *arguments) -> int:
    return run_main(
        monkeypatch, "read_results.py", lambda: read_results.read_results(read_results.parse_args()), *arguments
    )


def test_figures_of_other_data_or_another_training_are_not_compared(tmp_path, monkeypatch, capsys):
    """They stand there without a difference, and the reason below; one's own data sets stand beside the paper's."""
    write_run(tmp_path, "coop", "btad", (92.5, 94.9, 91.1, 80.0))
    write_run(tmp_path, "vand", "btad", (92.5, 94.9, 91.1, 80.0))
    write_run(tmp_path, "vand", "mine", (50.0, 60.0, 70.0, 80.0))
    rows = ["path,class,specie,label,score,map_max", *(f"{i}.png,01,,{int(i > 2)},0.5,0.5" for i in range(5))]
    (tmp_path / "coop" / "seed111" / "btad" / "scores.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "vand" / "seed111" / "btad" / "flags.txt").write_text("--method vand, trained on visa\n")
    (tmp_path / "vand" / "seed111" / "mine" / "flags.txt").write_text("--method vand, trained on visa\n")
    assert read(monkeypatch, "table1", "--results", tmp_path, "--data_sets", "btad", "mine") == 0
    text = squeeze(capsys.readouterr().out)
    assert "!" not in text.split("! differs")[0]
    assert "Not compared: btad: 3 normal and 2 anomalous images here, 451 and 290 in the paper.\n" in text
    assert "Not compared: btad: trained on visa here, on mvtec in the paper.\n" in text
    assert "mine: trained" not in text and "| mine | ours | - | - | - | 50.0, 60.0 | - | - |" in text


def test_a_row_per_variant_beside_the_papers(tmp_path, monkeypatch, capsys):
    """The exact text of table 5: marks, missing runs, missing metrics."""
    write_run(tmp_path, "anomalyclip", "mvtec", (92.5, 94.94, 91.14, None))
    write_run(tmp_path, "local_loss", "visa", (80.55, 80.1, 95.2, 86.5))
    assert read(monkeypatch, "table5", "--results", tmp_path) == 0
    text = (tmp_path / "table5.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text + f"\nWritten: {tmp_path}/table5.md {tmp_path}/table5.csv\n"
    lines = squeeze(text).splitlines()
    assert lines[:3] + lines[4:] == [
        "## Table 5: local and global loss",
        "",
        "| | | mvtec, pixel level (AUROC, AUPRO) | mvtec, image level (AUROC, AP) | visa, pixel level (AUROC, AUPRO) "
        "| visa, image level (AUROC, AP) |",
        "| neither | ours | - | - | - | - |",
        "| | paper | 71.7, 57.7 | 68.8, 85.8 | 74.7, 62.1 | 61.1, 69.1 |",
        "| | difference | - | - | - | - |",
        "| global | ours | - | - | - | - |",
        "| | paper | 80.3, 77.8 | 89.9, 95.4 | 86.6, 78.1 | 82.2, 84.9 |",
        "| | difference | - | - | - | - |",
        "| local | ours | - | - | 95.2, 86.5 | 80.5, 80.1 |",
        "| | paper | 91.0, 80.4 | 89.9, 96.0 | 95.2, 86.5 | 79.5, 83.2 |",
        "| | difference | - | - | +0.0, +0.0 | +1.0, -3.1! |",
        "| local and global | ours | 91.1, - | 92.5, 94.9 | - | - |",
        "| | paper | 91.1, 81.4 | 91.5, 96.2 | 95.5, 87.0 | 82.1, 85.4 |",
        "| | difference | +0.0, - | +1.0, -1.3! | - | - |",
        "",
        "neither: nothing is learned, hand-written prompts with the word object.",
        "! differs from the paper by more than 1 point.",
        "Percent; - was not run or not published.",
    ]


def test_a_row_per_data_set_with_several_seeds(tmp_path, monkeypatch):
    """Mean and sample standard deviation; one seed has none; CoOp on dtd was not published."""
    for seed, auroc in ((111, 90.0), (112, 91.0), (113, 92.0)):
        write_run(tmp_path, "anomalyclip", "mvtec", (auroc, 96.2, 91.1, 80.0), seed)
    write_run(tmp_path, "coop", "dtd", (70.0, 80.0, 20.0, 5.0))
    assert read(monkeypatch, "table1", "--results", tmp_path, "--out", tmp_path / "out") == 0
    text = squeeze((tmp_path / "out" / "table1.md").read_text(encoding="utf-8"))
    assert "| image level (AUROC, AP) | | CLIP | CLIP-AC | WinCLIP | VAND | CoOp | AnomalyCLIP |" in text
    for lines in (
        "| mvtec | ours | - | - | - | - | - | 91.0 ± 1.0, 96.2 ± 0.0 |\n"
        "| | paper | 74.1, 87.6 | 71.5, 86.4 | 91.8, 96.5 | 86.1, 93.5 | 88.8, 94.8 | 91.5, 96.2 |\n"
        "| | difference | - | - | - | - | - | -0.5, +0.0 |\n",
        "| dtd | ours | - | - | - | - | 20.0, 5.0 | - |\n"
        "| | paper | 33.9, 12.5 | 23.7, 5.5 | 83.9, 57.8 | 95.3, 86.9 | - | 97.9, 92.3 |\n"
        "| | difference | - | - | - | - | - | - |\n",
        "\n| mvtec | ours | - | - | - | - | - | 91.1 ± 0.0, 80.0 ± 0.0 |\n",
        "\nMean ± standard deviation over 3 seeds.\n",
    ):
        assert lines in text
    rows = (tmp_path / "out" / "table1.csv").read_text().splitlines()
    assert rows[0] == "table,data_set,variant,name,metric,ours,std,seeds,paper,difference,mark"
    assert len(rows) == 1 + 7 * 6 * 4
    for row in (
        "table1,mvtec,anomalyclip,AnomalyCLIP,image_auroc,91.0,1.0,3,91.5,-0.5,",
        "table1,mvtec,anomalyclip,AnomalyCLIP,pixel_aupro,80.0,0.0,3,81.4,-1.4,!",
        "table1,mvtec,clip_ac,CLIP-AC,image_auroc,,,0,71.5,,",
        "table1,dtd,coop,CoOp,pixel_auroc,20.0,,1,,,",
    ):
        assert row in rows


def test_other_data_sets_without_the_paper(tmp_path, monkeypatch):
    write_run(tmp_path, "clip", "target", (50.0, 60.0, 70.0, 80.0))
    assert read(monkeypatch, "table2", "--results", tmp_path, "--data_sets", "target", "--no_paper") == 0
    lines = squeeze((tmp_path / "table2.md").read_text(encoding="utf-8")).splitlines()
    assert lines[2] == "| image level (AUROC, AP) | CLIP | CLIP-AC | WinCLIP | VAND | CoOp | AnomalyCLIP |"
    assert lines[4] == "| target | 50.0, 60.0 | - | - | - | - | - |"
    assert lines[8] == "| target | 70.0, 80.0 | - | - | - | - | - |"
    assert lines[9:] == ["", "Percent; - was not run."]
    assert "paper" not in "".join(lines)


@pytest.mark.parametrize("name", ["figure5", "figure6"])
def test_figures(tmp_path, monkeypatch, capsys, name):
    assert read(monkeypatch, name, "--results", tmp_path) == 0
    assert not (tmp_path / f"{name}.png").exists()  # nothing to draw
    for seed in (111, 112):
        for number, variant in enumerate(TABLES[name].variants):
            write_run(tmp_path, variant, "visa", (80.0 + number, 70.0 - number, 90.0 + seed / 100, 60.0), seed)
    assert read(monkeypatch, name, "--results", tmp_path) == 0
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = squeeze(capsys.readouterr().out)
    if name == "figure5":
        assert "| visa | 80.0 ± 0.0, 70.0 ± 0.0 | 81.0 ± 0.0, 69.0 ± 0.0 | +1.0, -1.0 |" in text
        assert "| mvtec | - | - | - |" in text
    else:
        assert "| V-V | - | - | 91.1 ± 0.0, 60.0 ± 0.0 | 82.0 ± 0.0, 68.0 ± 0.0 |" in text


BAD_RUNS = {
    "another data set": (json.dumps({"dataset": "visa", "mean": {}}), "holds results of 'visa', not of 'mvtec'"),
    "unknown data set": (json.dumps({"dataset": "mine", "mean": {}}), "holds results of 'mine', not of 'mvtec'"),
    "no JSON": ("{", "is not a JSON object"),
    "no object": ("[]", "is not a JSON object"),
    "no text": (b"\xff\xfe\x00", "is not a JSON object"),
    "no mean": (json.dumps({"dataset": "mvtec"}), 'has no "dataset" and "mean"'),
    "no number": (json.dumps({"dataset": "mvtec", "mean": {"image_ap": "5"}}), "image_ap is '5', not a number"),
    "not finite": ('{"dataset": "mvtec", "mean": {"image_ap": NaN}}', "image_ap is nan, not a number"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_results_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, case):
    content, message = BAD_RUNS[case]
    path = write_run(tmp_path, "clip", "mvtec", (1, 2, 3, 4))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read(monkeypatch, "table1", "--results", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and message in error and error.count("\n") == 1
    assert not (tmp_path / "table1.md").exists()


def test_no_results_folder(tmp_path, monkeypatch, capsys):
    assert read(monkeypatch, "table1", "--results", tmp_path / "none") == 2
    assert capsys.readouterr().err == (
        f"error: --results {tmp_path}/none: no such folder; run bash scripts/table1.sh first\n"
    )


def test_help_is_quick():
    check_help("scripts/paper/read_results.py", "--no_paper", "torch", "numpy", "matplotlib", "tabulate")


def test_published_figures_of_newer_methods():
    """They are of the tables' data sets and metrics, and stand apart where their authors trained on another set."""
    newer = read_results.read_json(read_results.NEWER_PAPERS)
    assert set(newer) - {"about"} <= set(NEWER)
    for variant in newer.keys() - {"about"}:
        for key, values in newer[variant].items():
            known = [metric for level in levels_of(key) for metric in ALL_LEVELS[level][1]]
            assert set(values) <= set(known) and all(0 < value < 100 for value in values.values())


def test_glocalclip_was_trained_on_other_medical_sets(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, "glocalclip", "clinicdb", (None, None, 90.0, 80.0))
    (tmp_path / "glocalclip" / "seed111" / "clinicdb" / "flags.txt").write_text(
        "--method glocalclip, trained on mvtec\n"
    )
    assert read(monkeypatch, "table2", "--results", tmp_path) == 0
    text = squeeze(capsys.readouterr().out)
    assert "| CoOp | AnomalyCLIP | GlocalCLIP |" in text and "| - | - | 93.5, 84.2 |" not in text.split("paper")[0]
    assert "Not compared: GlocalCLIP on clinicdb: trained on mvtec here, on colondb in the paper." in text


def test_published_figures_fit_the_tables():
    for name, rows in PUBLISHED.items():
        if name == "about":
            continue
        table = TABLES[name]
        assert list(rows) == list(table.variants)  # those of newer methods have a file of their own
        for sets in rows.values():
            assert set(sets) <= set(table.data_sets)
            for key, values in sets.items():
                assert set(values) == {metric for level in levels_of(key) for metric in LEVELS[level][1]}
                assert all(0 < value < 100 for value in values.values())
    assert [len(sets) for sets in PUBLISHED["table1"].values()] == [7, 7, 7, 7, 6, 7]
    full = {key: PUBLISHED["table1"]["anomalyclip"][key] for key in ("mvtec", "visa")}
    assert full == PUBLISHED["table4"]["anomalyclip"] == PUBLISHED["table5"]["anomalyclip"]
    assert full["visa"] == {"image_auroc": 82.1, "image_ap": 85.4, "pixel_auroc": 95.5, "pixel_aupro": 87.0}
