"""scripts/*.sh: how to use them is said in one line, before anything is installed."""

import re
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["figure3.sh"], "no data/mvtec/bottle/test/broken_large/000.png is missing; .*usage: bash scripts/figure3.sh"),
        (["figure3.sh", "image.png"], "image.png without its patch; usage: bash scripts/figure3.sh"),
        (["figure4.sh"], "usage: bash scripts/figure4.sh"),
        (["figure4.sh", "--examples", "3"], "usage: bash scripts/figure4.sh"),
    ],
)
def test_shell_scripts_say_how_to_use_them(tmp_path, command, message):
    script = ["bash", str(ROOT / "scripts" / command[0]), *command[1:]]
    environment = {"PATH": "/usr/bin:/bin", "DATA_ROOT": "no data"}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and re.search(message, done.stderr)


def test_an_environment_of_ones_own(tmp_path):
    """USE_PYTHON is used as it is, or refused; nothing is installed."""
    script = ["bash", str(ROOT / "scripts" / "test.sh"), "mvtec"]
    for python, message in ((sys.executable, "epoch_15.pth is missing"), ("/bin/false", "/bin/false lacks torch or")):
        environment = {"PATH": "/usr/bin:/bin", "USE_PYTHON": python}
        done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
