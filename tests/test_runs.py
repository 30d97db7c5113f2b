"""scripts/paper/runs.sh behind the table scripts: the calls of train.py and test.py that the paper's tables ask for.

The scripts run for real, in a copy of the repository whose python writes these calls down.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, squeeze
from PIL import Image

from generate_dataset_json.builder import INDUSTRIAL
from scripts.paper.tables import TABLES

STUB = """#!/bin/sh
# python of the copy: notes the runs and leaves what they would leave; everything else is run.
case " $* " in
    *" train.py "* | *" test.py "*) ;;
    *" scripts/paper/read_results.py "*) [ -n "$UNREAD" ] || exec "$REAL_PYTHON" "$@"; exit ;;
    *" scripts/paper/weights.py "*) echo "$*" >>weights.txt; exit "$WEIGHTS_CODE" ;;
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
    for pattern in (
        "scripts/*.sh",
        "scripts/paper/*",
        "generate_dataset_json/*.py",
        "utils.py",
        "AnomalyCLIP_lib/*.py",
    ):
        for file in filter(Path.is_file, ROOT.glob(pattern)):
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
    known += ("META_ROOT", "READ_AS", "TEST_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    environment |= {"REAL_PYTHON": sys.executable, "FAIL": "", "UNREAD": "", "WEIGHTS_CODE": "0", **variables}
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
    for key in INDUSTRIAL:
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
        " --seed 111 --resume --keep_checkpoints 1 --method vand --precision bf16 --epoch 3 --mosaics 0.2 "
        "--device cuda:1",
        f"train.py --dataset visa --train_data_path data/visa --save_path {checkpoints}/vand/trained_on_visa/seed111"
        " --seed 111 --resume --keep_checkpoints 1 --method vand --precision bf16 --device cuda:1",
        "train.py --dataset visa --train_data_path data/visa "
        f"--save_path {checkpoints}/anomalyclip/trained_on_visa/seed111 "
        f"--seed 111 --resume --keep_checkpoints 1 --method anomalyclip {paper} --precision bf16 --device cuda:1",
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


def test_data_on_a_read_only_disk_and_reading_as_released(copy):
    """Descriptions lie elsewhere and are made there; how images are read is part of what a run is known by."""
    for image in ("mpdd/part/train/good/0.png", "mpdd/part/test/good/0.png"):
        (copy / "data" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(copy / "data" / image)
    (copy / "data" / "mvtec").mkdir()
    (copy / "metas").mkdir()
    (copy / "metas" / "mvtec.json").write_text("{}")
    variables = {"META_ROOT": str(copy / "metas"), "UNREAD": "yes"}
    bash(copy, "table1.sh", "clip", "anomalyclip", **variables, READ_AS="released")
    made = calls(copy)
    assert [line.split()[:3] for line in made] == [
        ["test.py", "--dataset", "mvtec"],
        ["test.py", "--dataset", "mpdd"],
        ["train.py", "--dataset", "mvtec"],
        ["test.py", "--dataset", "mpdd"],
    ]
    for line in made:
        key = line.split()[2]
        assert f"--meta {copy}/metas/{key}.json " in line and "--read_as released" in line
    assert (copy / "metas" / "mpdd.json").exists() and not (copy / "data" / "mpdd" / "meta.json").exists()
    assert "made with other flags" in bash(copy, "table1.sh", "clip", **variables, code=2).stderr


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


def test_newer_methods_run_if_they_are_named(copy):
    """With their authors' settings; their figures stand beside the authors', if these trained on the same set."""
    add_data(copy, "mvtec", "visa")
    done = bash(copy, "table1.sh", "af_clip", "glocalclip", "mrad_tf")
    made = calls(copy)
    assert len(made) == 3 * 2 * 2
    checkpoints = "results/tables", "checkpoints/tables"
    for line in (
        "train.py --dataset mvtec --train_data_path data/mvtec "
        f"--save_path {checkpoints[1]}/glocalclip/trained_on_mvtec/seed111 --seed 111 --resume --keep_checkpoints 1 "
        "--method glocalclip --n_ctx 12 --ab_ctx 13 --depth 10 --t_n_ctx 2",
        "train.py --dataset visa --train_data_path data/visa "
        f"--save_path {checkpoints[1]}/glocalclip/trained_on_visa/seed111 --seed 111 --resume --keep_checkpoints 1 "
        "--method glocalclip --n_ctx 13 --ab_ctx 13 --depth 9 --t_n_ctx 4",
        "train.py --dataset visa --train_data_path data/visa "
        f"--save_path {checkpoints[1]}/mrad_tf/trained_on_visa/seed111 --seed 111 --resume --keep_checkpoints 1 "
        "--method mrad --training_free",
    ):
        assert line in made
    text = squeeze(done.stdout)
    columns = " | CLIP | CLIP-AC | WinCLIP | VAND | CoOp | AnomalyCLIP | GlocalCLIP | AF-CLIP | MRAD-TF |"
    assert "image level (AUROC, AP) |" + columns in text
    assert "| mvtec | ours |" + " - |" * 6 + " 50.0, - | 50.0, - | 50.0, - |" in text
    assert "| 91.5, 96.2 | 91.7, 96.4 | 92.9, 96.8 | - |" in text
    assert "The paper of a newer method is its own." in text


def test_the_table_of_all_methods(copy):
    """Its trainings are those of table 1; all metrics are asked for, and results lie in a folder of their own."""
    add_data(copy, "visa", "mvtec")
    bash(copy, "table1.sh", "coop", "uniadet")
    calls(copy)
    done = bash(copy, "table_methods.sh")
    made = calls(copy)
    assert not any("/uniadet/trained_on" in line or "/coop/trained_on" in line for line in made if "train.py" in line)
    assert sum(line.startswith("test.py") for line in made) == 11 * 2
    assert all("--more_metrics" in line and "results/methods/" in line for line in made if line.startswith("test.py"))
    text = squeeze(done.stdout)
    assert "## All methods under one protocol" in text
    assert "| visa | | image AUROC | image AP | image F1-max | pixel AUROC | AUPRO | pixel AP |" in text
    assert "| UniADet | ours | 50.0 | - |" in text and "| | paper | 92.2 | - | - | - | - | 40.7 | - | - |" in text
    assert "| mean of 2 data sets | image AUROC |" in text and "| AF-CLIP | 50.0 | - |" in text
    assert (copy / "results" / "methods" / "table_methods.csv").exists()
    assert not calls(copy) and not bash(copy, "table_methods.sh").stderr and not calls(copy)


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
    """Every method and every variant of tables 4, 5 and figures 5, 6 once, on tiny."""
    done = bash(copy, "tables_tiny.sh")
    made = calls(copy)
    expected = {
        v for name in ("table_methods", "table4", "table5", "figure5", "figure6") for v in TABLES[name].variants
    }
    tested = [line.split("/tables_tiny/")[1].split("/")[0] for line in made if line.startswith("test.py")]
    assert sorted(tested) == sorted(expected)
    trained = [line for line in made if line.startswith("train.py")]
    assert len(trained) == len(expected) - 6  # three CLIP baselines, three kinds of hand-written prompts
    assert all("--model tiny" in line or "--checkpoint_path" in line for line in made)
    assert all("--dataset auxiliary" in line for line in trained)
    assert done.stdout.count("| target ") == 2 * (1 + 2 + 2) and "paper" not in done.stdout
    assert (copy / "results" / "tables_tiny" / "figure6.png").exists()


def test_weights_are_asked_for_once_for_each_backbone(copy):
    """Without them everything is skipped, each with a line, and no run waits for a download of its own."""
    add_data(copy, "mvtec", "visa")
    done = bash(copy, "table1.sh", MODEL_FLAGS="--model X", WINCLIP_FLAGS="--pretrained Y", WEIGHTS_CODE="2", code=1)
    asked = (copy / "weights.txt").read_text().splitlines()
    assert asked == [
        "scripts/paper/weights.py --method clip --model X",
        "scripts/paper/weights.py --method winclip --pretrained Y",
    ]
    assert not calls(copy)
    for variant in ("clip", "clip_ac", "winclip"):
        assert f"skipped: {variant} on mvtec visa (no weights, see above)\n" in done.stdout
    for variant in ("vand", "coop", "anomalyclip"):
        assert f"skipped: {variant} on visa (no weights, see above)\n" in done.stdout
    assert done.stderr == (
        "error: not everything could be run, see the messages above:\n"
        "  weights of all methods but winclip (exit code 2)\n  weights of winclip (exit code 2)\n"
    )
    bash(copy, "table1.sh")
    (copy / "weights.txt").unlink()
    bash(copy, "table1.sh")
    assert not (copy / "weights.txt").exists()  # nothing left to run, nothing to ask for
