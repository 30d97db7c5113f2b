"""utils.py: how scripts end, types of flags, files that appear whole or not at all."""

import argparse
import json

import pytest

import utils


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (utils.InputError("flag is wrong; mend it"), 2, "error: flag is wrong; mend it"),
        (ModuleNotFoundError("no module", name="torch"), 2, "lacks the module torch; activate the scripts'"),
        (OSError(28, "No space left on device", "file"), 2, "error: file: No space left on device; check disk and"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished is on disk"),
    ],
)
def test_scripts_end_with_one_line(capsys, error, code, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        utils.run_cli(main)
    message = capsys.readouterr().err
    assert end.value.code == code and line in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (utils.positive_int, ("1", "12"), ("0", "-3", "1.5", "x")),
        (utils.nonnegative_int, ("0", "7"), ("-1", "", "1e3")),
        (utils.nonnegative_float, ("0", "1e-3"), ("-0.1", "inf", "nan", "x")),
    ],
)
def test_types_of_flags(kind, good, bad):
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            kind(text)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    utils.write_json(path, {"ü": [1]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1]} and "ü" in path.read_text(encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), utils.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1]}
    assert list(tmp_path.iterdir()) == [path]
