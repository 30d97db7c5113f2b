"""test.py run for real: metrics, table and pictures, going on after an interruption, prompts that need no training."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import QUICK, SCRIPTS, TINY, check_error, check_help, make_data, run
from PIL import Image
from sklearn.metrics import auc, average_precision_score, roc_auc_score

import AnomalyCLIP_lib
from dataset import AnomalyDataset
from methods.anomalyclip import Method
from metrics import pixel_aupro
from prompt_ensemble import PromptLearner


def test_metrics_are_those_of_the_python_interface(data, trained, tmp_path, monkeypatch):
    checkpoint = trained / "epoch_2.pth"
    for batch in (1, 4):
        folder = tmp_path / f"batch {batch}"
        common = ("--data_path", data, "--checkpoint_path", checkpoint, "--num_workers", 0, "--device", "cpu")
        assert run(monkeypatch, "test", *common, "--save_path", folder, "--batch_size", batch, "--vis") == 0
    results, other = (json.loads((tmp_path / f"batch {batch}" / "metrics.json").read_text()) for batch in (1, 4))

    model = AnomalyCLIP_lib.load("tiny")
    learner = PromptLearner(model)
    learner.load_state_dict(torch.load(checkpoint, weights_only=True)["prompt_learner"])
    items = [item for item in AnomalyDataset(data, model.preprocess) if item["class_name"] == "tile"]
    images, masks = (torch.stack([item[key] for item in items]) for key in ("image", "mask"))
    scores, maps = model.detect(images, learner().detach(), layers=[6], sigma=4)
    labels = [item["label"] for item in items]
    expected = {
        "pixel_auroc": roc_auc_score(masks.ravel(), maps.ravel()),
        "pixel_aupro": pixel_aupro(masks.numpy(), maps.numpy()),
        "image_auroc": roc_auc_score(labels, scores),
        "image_ap": average_precision_score(labels, scores),
    }
    for name, value in expected.items():
        assert results["classes"]["tile"][name] == pytest.approx(100 * value, abs=1e-3)
        assert other["classes"]["tile"][name] == pytest.approx(100 * value, abs=1e-3)
        mean = np.mean([results["classes"][key][name] for key in ("metal_nut", "tile")])
        assert results["mean"][name] == pytest.approx(mean)

    table = (tmp_path / "batch 1" / "table.md").read_text().splitlines()
    assert table[0].replace(" ", "") == "|objects|pixel_auroc|pixel_aupro|image_auroc|image_ap|"
    assert table[-1].split("|")[1].strip() == "mean"
    assert table[-1].split("|")[2].strip() == f"{results['mean']['pixel_auroc']:.1f}"
    picture = Image.open(tmp_path / "batch 1" / "vis" / "tile" / "test" / "1 ö.png")
    assert picture.size == (3 * 96, 96)


def test_an_interrupted_test_goes_on_with_the_next_class(data, trained, tmp_path, monkeypatch, capsys):
    common = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0, "--batch_size", 2)
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "straight") == 0
    predict, images = Method.predict, []

    def counted(*arguments):
        images.append(1)
        if len(images) == 9:  # in the second class of six images each
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(Method, "predict", counted)
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "stopped") == 130
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "stopped") == 0
    assert len(images) == 9 + 6 and "metal_nut: finished before" in capsys.readouterr().out
    straight, stopped = ((tmp_path / name / "metrics.json").read_bytes() for name in ("straight", "stopped"))
    assert straight == stopped and not (tmp_path / "stopped" / "finished_classes.json").exists()


def read_report(folder) -> dict:
    """The data in a report."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE).group(1))


def test_maps_and_a_report(data, trained, tmp_path, monkeypatch):
    """An interruption between the classes makes no difference to either."""
    common = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0)
    common += ("--report", "--save_maps", "--vis")
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        predict, images = Method.predict, []

        def counted(*arguments):
            images.append(1)
            return interrupt() if len(images) == 9 else predict(*arguments)

        patch.setattr(Method, "predict", counted)
        assert run(patch, "test", *common, "--save_path", tmp_path / "stopped") == 130
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "stopped") == 0
    straight, stopped = (read_report(tmp_path / name) for name in ("straight", "stopped"))
    assert straight == stopped and not (tmp_path / "stopped" / "unfinished").exists()
    columns, results = straight["columns"], json.loads((tmp_path / "straight" / "metrics.json").read_text())
    assert columns["label"] == [0, 1] * 6 and columns["group"] == ["metal_nut"] * 6 + ["tile"] * 6
    assert len(straight["thumbnails"]) == 12 and columns["file"][1] == "vis/metal_nut/test/1 ö.png"
    for class_name, metrics in results["classes"].items():
        scores = [columns["score"][i] for i in range(12) if columns["group"][i] == class_name]
        assert 100 * roc_auc_score([0, 1] * 3, scores) == pytest.approx(metrics["image_auroc"])
        roc = np.array(straight["curves"][class_name]["roc"])
        assert 100 * auc(roc[:, 0], roc[:, 1]) == pytest.approx(metrics["image_auroc"], abs=0.2)
    for path in ("tile/test/3 ö.png", "metal_nut/test/0 ö.png"):
        with Image.open(tmp_path / "straight" / "maps" / path) as image:
            assert image.size == (96, 96) and np.asarray(image).dtype == np.uint16


def test_pictures_that_differ_in_the_suffix_only(data, trained, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    meta = json.loads((copy / "meta.json").read_text())
    entry = dict(meta["test"]["tile"][0])
    entry["img_path"] = "tile/test/1 ö.jpg"
    Image.open(copy / "tile/test/0 ö.png").save(copy / entry["img_path"])
    meta["test"]["tile"].append(entry)
    (copy / "meta.json").write_text(json.dumps(meta))
    common = ("--data_path", copy, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0, "--vis")
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "run") == 0
    names = sorted(path.name for path in (tmp_path / "run" / "vis" / "tile" / "test").iterdir())
    assert "1 ö.jpg.png" in names and "1 ö.png.png" in names and len(names) == 7


def interrupt(*_):
    raise KeyboardInterrupt


def test_other_tests_do_not_take_over_finished_classes(data, trained, tmp_path, monkeypatch, capsys):
    common = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0)
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS["test"], "write_text", interrupt)
        assert run(patch, "test", *common, "--save_path", tmp_path) == 130
    assert (tmp_path / "finished_classes.json").exists()
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path, "--sigma", 2) == 0
    assert "finished before" not in capsys.readouterr().out


def test_exact_aupro_and_half_precision_maps(data, trained, tmp_path, monkeypatch):
    common = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0, "--exact_aupro")
    for kind in ("float32", "float16"):
        assert run(monkeypatch, "test", *common, "--save_path", tmp_path / kind, "--map_dtype", kind) == 0
    full, half = (json.loads((tmp_path / kind / "metrics.json").read_text())["mean"] for kind in ("float32", "float16"))
    assert list(full) == ["pixel_auroc", "pixel_aupro", "pixel_aupro_exact", "image_auroc", "image_ap"]
    assert full == pytest.approx(half, abs=0.5)
    assert 0 < full["pixel_aupro_exact"] <= 100


def test_a_released_checkpoint_needs_its_settings_as_flags(data, trained, tmp_path, monkeypatch):
    """The authors' files hold nothing but the prompt learner."""
    state = torch.load(trained / "epoch_2.pth", weights_only=True)["prompt_learner"]
    torch.save({"prompt_learner": state}, tmp_path / "epoch_15.pth")
    for checkpoint, folder in ((tmp_path / "epoch_15.pth", "released"), (trained / "epoch_2.pth", "ours")):
        common = ("--data_path", data, "--checkpoint_path", checkpoint, "--save_path", tmp_path / folder)
        assert run(monkeypatch, "test", *common, *QUICK) == 0
    released, ours = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("released", "ours"))
    assert released["classes"] == ours["classes"]


def test_object_aware_and_hand_written_prompts(data, tmp_path, monkeypatch):
    aware = ("--train_data_path", data, "--save_path", tmp_path / "aware", "--epoch", 1, "--prompt", "object-aware")
    assert run(monkeypatch, "train", *aware, *QUICK) == 0
    common = ("--data_path", data, "--num_workers", 0, "--metrics", "pixel-level")
    checkpoint = ("--checkpoint_path", tmp_path / "aware" / "epoch_1.pth", "--save_path", tmp_path / "aware")
    assert run(monkeypatch, "test", *common, *checkpoint) == 0
    hand_written = ("--prompt", "hand-written", "--save_path", tmp_path / "hand", "--model", "tiny")
    assert run(monkeypatch, "test", *common, *hand_written) == 0
    for folder in ("aware", "hand"):
        assert list(json.loads((tmp_path / folder / "metrics.json").read_text())["mean"]) == [
            "pixel_auroc",
            "pixel_aupro",
        ]


def test_hand_written_prompts_with_the_word_object(data, tmp_path, monkeypatch):
    for prompt in ("hand-written", "hand-written-object"):
        arguments = ("--data_path", data, "--prompt", prompt, "--save_path", tmp_path / prompt, "--features_list", 6)
        assert run(monkeypatch, "test", *arguments, *TINY) == 0
    named, objects = (json.loads((path / "metrics.json").read_text()) for path in sorted(tmp_path.iterdir()))
    assert named["classes"] != objects["classes"]


def test_references_are_drawn_by_the_seed(data, tmp_path, monkeypatch):
    arguments = ("--data_path", data, "--method", "winclip", "--k_shot", 1, *TINY)
    results = []
    for number, seed in enumerate((1, 1, 2, 3, 4)):
        folder = tmp_path / str(number)
        assert run(monkeypatch, "test", *arguments, "--seed", seed, "--save_path", folder) == 0
        results.append((folder / "metrics.json").read_text())
    assert results[0] == results[1] and len(set(results)) > 1


def test_few_shot_without_a_train_split(tmp_path, monkeypatch, capsys):
    data = make_data(tmp_path / "data")
    arguments = ("--data_path", data, "--save_path", tmp_path / "run", "--method", "winclip", "--k_shot", 1, *TINY)
    assert run(monkeypatch, "test", *arguments) == 2
    check_error(capsys, "--k_shot 1 takes normal images of the train split, but .*no images to use in the train split")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size", "64"], r"64 contradicts .*96"),
        (["--features_list", "5"], r"5 contradicts .*6"),
        (["--n_ctx", "4"], r"4 contradicts .*12"),
        (["--depth", "2"], r"2 contradicts .*4"),
        (["--dpam_layer", "1"], r"1 contradicts .*6"),
        (["--model", "ViT-L-14-336"], r"ViT-L-14-336 contradicts .*tiny"),
        (["--checkpoint_path", "none.pth"], "does not exist"),
        (["--checkpoint_path", __file__], "not opened"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(data, trained, tmp_path, monkeypatch, capsys, flags, message):
    arguments = ["--data_path", data, "--save_path", tmp_path / "run", "--num_workers", 0]
    arguments += ["--checkpoint_path", trained / "epoch_2.pth"]
    assert run(monkeypatch, "test", *arguments, *flags) == 2
    check_error(capsys, message)


def test_a_missing_data_set_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AnomalyCLIP_lib.backbones, "load", load)
    arguments = ("--data_path", tmp_path / "nowhere", "--save_path", tmp_path / "run", "--method", "clip")
    assert run(monkeypatch, "test", *arguments) == 2
    check_error(capsys, "nowhere: No such file")


def test_help_does_not_import_torch():
    check_help("test.py", "--features_list", "torch", "numpy")
