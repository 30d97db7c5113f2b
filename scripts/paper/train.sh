#!/usr/bin/env bash
# The paper's training on one data set: bash scripts/paper/train.sh DATASET [arguments of train.py]
# Behind train_mvtec.sh and train_visa.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
make_environment

DATASET=$1
shift
"$PYTHON" train.py --dataset "$DATASET" --train_data_path "${DATA_ROOT:-data}/$DATASET" \
    ${META_ROOT:+--meta "$META_ROOT/$DATASET.json"} --save_path "checkpoints/trained_on_$DATASET" $PAPER_FLAGS $PAPER_TRAINING --resume "$@"
