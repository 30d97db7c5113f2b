"""The paper's tables: results read into the paper's layout, and the runs that the table scripts ask for.

The scripts run for real, in a copy of the repository whose python writes down the calls of train.py and test.py.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils import run_cli

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import read_results  # noqa: E402

PUBLISHED = json.loads((ROOT / "scripts" / "paper_results.json").read_text(encoding="utf-8"))
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")


# reading


def write_run(results: Path, variant: str, key: str, values: tuple, seed: int = 111, **changes) -> Path:
    """metrics.json as test.py writes it, with what is read from it; values: of METRICS."""
    path = results / variant / f"seed{seed}" / key / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"dataset": key, "mean": dict(zip(METRICS, values, strict=True))} | changes))
    return path


def read(monkeypatch, *arguments) -> int:
    """Run read_results.py in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["read_results.py", *map(str, arguments)])
    try:
        run_cli(lambda: read_results.read_results(read_results.parse_args()))
    except SystemExit as exit:
        return exit.code or 0
    return 0


def squeeze(text: str) -> str:
    """Without the padding of the tables."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


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
        for number, variant in enumerate(read_results.TABLES[name].variants):
            write_run(tmp_path, variant, "visa", (80.0 + number, 70.0 - number, 90.0 + seed / 100, 60.0), seed)
    assert read(monkeypatch, name, "--results", tmp_path) == 0
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = squeeze(capsys.readouterr().out)
    if name == "figure5":
        assert "| visa | 80.0 ± 0.0, 70.0 ± 0.0 | 81.0 ± 0.0, 69.0 ± 0.0 | +1.0, -1.0 |" in text
        assert "| mvtec | - | - | - |" in text
    else:
        assert "| V-V | - | - | 91.1 ± 0.0, 60.0 ± 0.0 | 82.0 ± 0.0, 68.0 ± 0.0 |" in text


def test_names_of_data_sets_may_be_spelled_differently(tmp_path, monkeypatch):
    write_run(tmp_path, "clip", "mvtec", (1, 2, 3, 4), dataset="MVTec-AD")
    assert read(monkeypatch, "table1", "--results", tmp_path) == 0


BAD_RUNS = {
    "another data set": (json.dumps({"dataset": "visa", "mean": {}}), "holds results of 'visa', not of 'mvtec'"),
    "unknown data set": (json.dumps({"dataset": "mine", "mean": {}}), "holds results of 'mine', not of 'mvtec'"),
    "no JSON": ("{", "is not a JSON object"),
    "no object": ("[]", "is not a JSON object"),
    "no text": (b"\xff\xfe\x00", "is not a JSON object"),
    "no mean": (json.dumps({"dataset": "mvtec"}), 'has no "dataset" and "mean"'),
    "no number": (json.dumps({"dataset": "mvtec", "mean": {"image_ap": "5"}}), "image_ap is '5', no number"),
    "not finite": ('{"dataset": "mvtec", "mean": {"image_ap": NaN}}', "image_ap is nan, no number"),
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
    code = (
        "import runpy, sys\n"
        "sys.argv = ['read_results.py', '--help']\n"
        "try:\n"
        "    runpy.run_path('scripts/read_results.py', run_name='__main__')\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'matplotlib', 'tabulate'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--no_paper" in done.stdout, done.stderr


def test_published_figures_fit_the_tables():
    for name, rows in PUBLISHED.items():
        if name == "about":
            continue
        table = read_results.TABLES[name]
        assert list(rows) == list(table.variants)
        for sets in rows.values():
            assert set(sets) <= set(table.image + table.pixel)
            for key, values in sets.items():
                levels = ["image"] * (key in table.image) + ["pixel"] * (key in table.pixel)
                assert set(values) == {metric for level in levels for metric in read_results.LEVELS[level][1]}
                assert all(0 < value < 100 for value in values.values())
    assert [len(sets) for sets in PUBLISHED["table1"].values()] == [7, 7, 7, 7, 6, 7]
    full = {key: PUBLISHED["table1"]["anomalyclip"][key] for key in ("mvtec", "visa")}
    assert full == PUBLISHED["table4"]["anomalyclip"] == PUBLISHED["table5"]["anomalyclip"]
    assert full["visa"] == {"image_auroc": 82.1, "image_ap": 85.4, "pixel_auroc": 95.5, "pixel_aupro": 87.0}


# running

STUB = """#!/bin/sh
# python of the copy: notes the runs and leaves what they would leave; everything else is run.
case " $* " in
    *" train.py "* | *" test.py "*) ;;
    *" scripts/read_results.py "*) [ -n "$UNREAD" ] || exec "$REAL_PYTHON" "$@"; exit ;;
    *" synthetic/render.py "*)
        mkdir -p "$3/auxiliary" "$3/target"
        echo {} | tee "$3/auxiliary/meta.json" >"$3/target/meta.json"
        exit ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
echo "$*" >>calls.txt
[ -z "$FAIL" ] || case "$*" in *"$FAIL"*) exit "$FAIL_CODE" ;; esac
script=$1
while [ $# -gt 0 ]; do
    case $1 in --save_path) folder=$2 ;; --dataset) dataset=$2 ;; esac
    shift
done
mkdir -p "$folder"
if [ "$script" = train.py ]; then touch "$folder/epoch_9.pth" "$folder/epoch_15.pth"; else
    echo '{"dataset": "'"$dataset"'", "mean": {"image_auroc": 50.0}}' >"$folder/metrics.json"
fi
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of what the table scripts need."""
    root = tmp_path / "copy of the repository"
    for pattern in ("scripts/*.sh", "scripts/*.py", "scripts/*.json", "generate_dataset_json/*.py", "utils.py"):
        for file in ROOT.glob(pattern):
            (root / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / file.relative_to(ROOT))
    (root / ".venv" / "bin").mkdir(parents=True)
    for file in ("requirements.txt", ".venv/.installed"):
        (root / file).touch()
    (root / ".venv" / "bin" / "python").write_text(STUB)
    (root / ".venv" / "bin" / "python").chmod(0o755)
    return root


def add_data(root: Path, *keys: str) -> None:
    for key in keys:
        (root / "data" / key).mkdir(parents=True)
        (root / "data" / key / "meta.json").write_text("{}")


def bash(root: Path, script: str, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess:
    """Run a script of the copy, from another folder."""
    known = ("DATA_ROOT", "SEEDS", "RESULTS", "CHECKPOINTS", "MODEL_FLAGS", "MACHINE_FLAGS", "DATA_SETS", "AUXILIARY")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    environment |= {"REAL_PYTHON": sys.executable, "FAIL": "", "UNREAD": "", **variables}
    command = ["bash", str(root / "scripts" / script), *arguments]
    done = subprocess.run(command, cwd=root.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def calls(root: Path) -> list[str]:
    """The calls of train.py and test.py since this was asked last."""
    file = root / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_without_data_all_is_skipped_by_name(copy):
    done = bash(copy, "table1.sh")
    for key in read_results.INDUSTRIAL:
        assert f"skipped: {key} (no folder data/{key})\n" in done.stdout
    assert "| mvtec | ours | - | - | - | - | - | - |" in squeeze(done.stdout)
    assert not done.stderr and not calls(copy)
    assert (copy / "results" / "tables" / "table1.csv").exists()


def test_the_runs_of_table_1(copy):
    """MVTec AD is tested after training on VisA, all others after MVTec AD; a second time nothing is left to do."""
    add_data(copy, "mvtec", "visa", "sdd")
    done = bash(copy, "table1.sh", MODEL_FLAGS="--precision bf16", MACHINE_FLAGS="--device cuda:1")
    assert "skipped: mpdd (no folder data/mpdd)\n" in done.stdout
    assert "| sdd | ours |" + " 50.0, - |" * 6 in squeeze(done.stdout)
    made = calls(copy)
    assert len(made) == 3 * 3 + 3 * (2 + 3)
    results, checkpoints = "results/tables", "checkpoints/tables"
    paper = "--features_list 24 --image_size 518 --batch_size 8 --epoch 15 --depth 9 --n_ctx 12 --t_n_ctx 4"
    for line in (
        f"test.py --dataset sdd --data_path data/sdd --save_path {results}/winclip/seed111/sdd "
        "--metrics image-pixel-level --seed 111 --method winclip --device cuda:1",
        f"test.py --dataset visa --data_path data/visa --save_path {results}/clip_ac/seed111/visa "
        "--metrics image-pixel-level --seed 111 --method clip_ac --precision bf16 --device cuda:1",
        f"train.py --dataset mvtec --train_data_path data/mvtec --save_path {checkpoints}/vand/trained_on_mvtec/seed111"
        " --seed 111 --resume --method vand --precision bf16 --epoch 3 --device cuda:1",
        f"train.py --dataset visa --train_data_path data/visa --save_path {checkpoints}/vand/trained_on_visa/seed111"
        " --seed 111 --resume --method vand --precision bf16 --device cuda:1",
        "train.py --dataset visa --train_data_path data/visa "
        f"--save_path {checkpoints}/anomalyclip/trained_on_visa/seed111 "
        f"--seed 111 --resume --method anomalyclip {paper} --precision bf16 --device cuda:1",
        f"test.py --dataset mvtec --data_path data/mvtec --save_path {results}/anomalyclip/seed111/mvtec "
        "--metrics image-pixel-level --seed 111 "
        f"--checkpoint_path {checkpoints}/anomalyclip/trained_on_visa/seed111/epoch_15.pth --device cuda:1",
        f"test.py --dataset sdd --data_path data/sdd --save_path {results}/coop/seed111/sdd "
        "--metrics image-pixel-level --seed 111 "
        f"--checkpoint_path {checkpoints}/coop/trained_on_mvtec/seed111/epoch_15.pth --device cuda:1",
    ):
        assert made.count(line) == 1, line
    bash(copy, "table1.sh", MODEL_FLAGS="--precision bf16", MACHINE_FLAGS="--device cpu")
    assert not calls(copy)


def test_tables_share_their_trainings(copy):
    """Of table 1's AnomalyCLIP nothing is repeated; table 2 only tests."""
    add_data(copy, "mvtec", "visa", "headct", "kvasir")
    bash(copy, "table1.sh", "anomalyclip", UNREAD="yes")
    assert [line.split()[0] for line in calls(copy)] == ["train.py", "test.py"] * 2
    bash(copy, "table2.sh", "anomalyclip", UNREAD="yes")
    made = calls(copy)
    assert [line.split()[0] for line in made] == ["test.py"] * 2
    assert "--metrics image-level" in made[0] and "--metrics pixel-level" in made[1]
    bash(copy, "figure5.sh", UNREAD="yes")
    made = calls(copy)
    assert len(made) == 2 + 4 and all("/object_aware/" in line for line in made)
    for script, variants in (
        ("table4.sh", ["hand_written_no_dpam"] * 2 + ["hand_written"] * 2 + ["no_deep_tokens"] * 4),
        ("table5.sh", ["hand_written_object"] * 2 + ["global_loss"] * 4 + ["local_loss"] * 4),
        ("figure6.sh", ["dpam_qq"] * 4 + ["dpam_kk"] * 4),
    ):
        bash(copy, script, UNREAD="yes")
        made = calls(copy)
        assert [line.split("/tables/")[1].split("/")[0] for line in made] == variants
        trained = [line for line in made if line.startswith("train.py")]
        differing = {"table4.sh": "--depth 1", "table5.sh": "_loss", "figure6.sh": "--dpam_mode"}[script]
        assert all(differing in line for line in trained)


def test_several_seeds_and_an_interruption(copy):
    add_data(copy, "mvtec", "mpdd")
    bash(
        copy, "table1.sh", "clip", "anomalyclip", SEEDS="1 2", FAIL="test.py --dataset mpdd", FAIL_CODE="130", code=130
    )
    assert len(calls(copy)) == 2  # clip on mvtec, on mpdd
    done = bash(copy, "table1.sh", "clip", "anomalyclip", SEEDS="1 2")
    made = calls(copy)
    assert [line.split()[0] for line in made] == ["test.py"] + ["train.py", "test.py"] * 2
    assert "/clip/seed111/mpdd " in made[0]
    assert "skipped: anomalyclip on mvtec (nothing to train on: no folder data/visa)" in done.stdout
    assert "| mpdd | ours | 50.0, - | - | - | - | - | 50.0 ± 0.0, - |" in squeeze(done.stdout)


def test_methods_without_training_run_when_the_auxiliary_set_is_missing(copy):
    add_data(copy, "btad", "dtd")
    done = bash(copy, "table1.sh")
    assert [line.split(" --save_path ")[0].split()[0] for line in calls(copy)] == ["test.py"] * 6
    for variant in ("vand", "coop", "anomalyclip"):
        assert f"skipped: {variant} on btad dtd (nothing to train on: no folder data/mvtec)\n" in done.stdout


def test_a_failing_run_does_not_stop_the_others(copy):
    add_data(copy, "mvtec", "visa")
    done = bash(copy, "table1.sh", FAIL="--method winclip", FAIL_CODE="2", code=1)
    assert done.stderr == (
        "error: not everything could be run, see the messages above:\n"
        "  testing winclip on mvtec, seed 111 (exit code 2)\n  testing winclip on visa, seed 111 (exit code 2)\n"
    )
    assert "| visa | ours | 50.0, - | 50.0, - | - | 50.0, - | 50.0, - | 50.0, - |" in squeeze(done.stdout)
    calls(copy)
    done = bash(copy, "table4.sh", "no_deep_tokens", FAIL="train.py --dataset visa", FAIL_CODE="2", code=1)
    assert "skipped: no_deep_tokens on mvtec (training no_deep_tokens on visa, seed 111 failed)" in done.stdout
    assert len(calls(copy)) == 3


def test_results_of_other_flags_are_not_taken_over(copy):
    add_data(copy, "visa")
    bash(copy, "table1.sh", "clip")
    done = bash(copy, "table1.sh", "clip", MODEL_FLAGS="--model tiny", code=2)
    assert done.stderr == (
        "error: results/tables/clip/seed111/visa was made with other flags (--method clip) than now "
        "(--method clip --model tiny); remove it, or set RESULTS and CHECKPOINTS to other folders\n"
    )
    calls(copy)
    bash(copy, "table1.sh", "clip", MODEL_FLAGS="--model tiny", RESULTS="results/other")
    assert len(calls(copy)) == 1


def test_arguments_that_are_no_variants(copy):
    done = bash(copy, "table3.sh", "clip", code=2)
    assert done.stderr == "error: table3 has no variant clip; give some of: vand_colon anomalyclip_colon\n"
    done = bash(copy, "table3.sh", "--vis", code=2)
    assert done.stderr.startswith("error: the arguments are variants, not flags (--vis)")


def test_table_3_trains_on_the_medical_set(copy):
    add_data(copy, "mvtec", "headct", "colondb", "isic")
    done = bash(copy, "table3.sh")
    script = "generate_dataset_json/colondb_train.py"
    reason = f"nothing to train on: no data/colondb_train/meta.json; make it with {script}"
    assert f"skipped: vand_colon on headct isic ({reason})\n" in done.stdout and not calls(copy)
    add_data(copy, "colondb_train")
    bash(copy, "table3.sh")
    trained, first, second = calls(copy)[:3]
    assert trained.startswith("train.py --dataset colondb_train ") and "--epoch" not in trained
    assert "/vand_colon/trained_on_colondb_train/seed111/epoch_15.pth" in first and "--metrics image-level" in first
    assert "--dataset isic" in second and "--metrics pixel-level" in second


def test_meta_json_is_made_where_it_is_missing(copy):
    for path in ("tubes/test/good/0.png", "tubes/test/bad/1.png", "tubes/ground_truth/bad/1_mask.png"):
        (copy / "data" / "mpdd" / path).parent.mkdir(parents=True)
        (copy / "data" / "mpdd" / path).touch()
    (copy / "data" / "btad").mkdir()
    (copy / "data" / "mine").mkdir()
    done = bash(copy, "table1.sh", "clip", DATA_SETS="mpdd btad mine")
    assert json.loads((copy / "data" / "mpdd" / "meta.json").read_text())["test"]["tubes"]
    assert "skipped: btad (generate_dataset_json/btad.py cannot read data/btad, see above)" in done.stdout
    assert "skipped: mine (no data/mine/meta.json; make it with generate_dataset_json/custom.py)" in done.stdout
    assert "error: --root data/btad: the folder is empty" in done.stderr
    assert len(calls(copy)) == 1
    with open(copy / "results" / "tables" / "table1.csv", newline="") as file:
        assert {row["data_set"] for row in csv.DictReader(file)} == {"mpdd", "btad", "mine"}


def test_the_miniature(copy):
    """Every variant of tables 1, 4, 5 and figures 5, 6 once, on tiny."""
    done = bash(copy, "tables_tiny.sh")
    made = calls(copy)
    expected = {
        v for name in ("table1", "table4", "table5", "figure5", "figure6") for v in read_results.TABLES[name].variants
    }
    tested = [line.split("/tables_tiny/")[1].split("/")[0] for line in made if line.startswith("test.py")]
    assert sorted(tested) == sorted(expected)
    trained = [line for line in made if line.startswith("train.py")]
    assert len(trained) == len(expected) - 6  # three CLIP baselines, three kinds of hand-written prompts
    assert all("--model tiny" in line or "--checkpoint_path" in line for line in made)
    assert all("--dataset auxiliary" in line for line in trained)
    assert done.stdout.count("| target ") == 2 * (2 + 2) and "paper" not in done.stdout
    assert (copy / "results" / "tables_tiny" / "figure6.png").exists()
