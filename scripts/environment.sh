# Sourced by the other scripts: goes to the repository's root, and makes .venv with the requirements, once. A relative
# DATA_ROOT or META_ROOT is looked up in the folder that the script was called from; from_caller does the same for
# another path.
# USE_PYTHON=/path/to/python takes that environment instead, as it is. PYTHON=/path/to/python3 makes .venv from that one.
CALLER=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

from_caller() {
    case $1 in
        /*) echo "$1" ;;
        *) if [ "$CALLER" -ef . ]; then echo "$1"; else echo "$CALLER/$1"; fi ;;
    esac
}
[ -z "${DATA_ROOT:-}" ] || DATA_ROOT=$(from_caller "$DATA_ROOT")
[ -z "${META_ROOT:-}" ] || META_ROOT=$(from_caller "$META_ROOT")

# The paper's settings of AnomalyCLIP on ViT-L/14@336, and of its training
PAPER_FLAGS="--features_list 24 --image_size 518"
PAPER_TRAINING="--batch_size 8 --epoch 15 --depth 9 --n_ctx 12 --t_n_ctx 4"

make_environment() {
    if [ -n "${USE_PYTHON:-}" ]; then
        "$USE_PYTHON" -c 'import torch, open_clip' 2>/dev/null || {
            echo "error: $USE_PYTHON lacks torch or open_clip; $USE_PYTHON -m pip install -r requirements.txt" >&2
            exit 2
        }
        PYTHON=$USE_PYTHON
        return
    fi
    local stamp=.venv/.installed base=${PYTHON:-python3}
    if [ ! -f "$stamp" ] || ! cmp -s requirements.txt "$stamp"; then
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "error: $base is missing or older than 3.10; install Python 3.10+ or set PYTHON=/path/to/python3" >&2
            exit 2
        }
        echo "installing into .venv (about two minutes the first time)"
        "$base" -m venv .venv || {
            echo "error: python cannot make a virtual environment; install its venv module (python3-venv)" >&2
            exit 2
        }
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || {
            echo "error: the requirements could not be installed; see pip's message above" >&2
            exit 2
        }
        cp requirements.txt "$stamp"
    fi
    PYTHON=$PWD/.venv/bin/python
}
