#!/usr/bin/env bash
# The whole test suite and the linter, in .venv (made if need be). Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
"$PYTHON" -m ruff check .
"$PYTHON" -m pytest "$@"
