#!/usr/bin/env bash
# Test one data set with the checkpoint that the paper tests it with: bash scripts/test.sh DATASET [arguments of test.py]
# MVTec AD is tested with prompts learned on VisA, every other data set with prompts learned on MVTec AD.
# DATA_ROOT says where the data sets are (data), META_ROOT where their descriptions are, as META_ROOT/KEY.json, if they
# do not lie beside the data.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash scripts/test.sh DATASET [arguments of test.py]" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment

DATASET=$1
shift
TRAINED=checkpoints/trained_on_$([ "$DATASET" = mvtec ] && echo visa || echo mvtec)
CHECKPOINT=$TRAINED/epoch_15.pth
[ -f "$CHECKPOINT" ] || { echo "error: $CHECKPOINT is missing; make it with bash scripts/${TRAINED/checkpoints\/trained_on/train}.sh" >&2; exit 2; }

METRICS=$("$PYTHON" scripts/paper/tables.py "$DATASET" | cut -d ' ' -f 2)
"$PYTHON" test.py --dataset "$DATASET" --data_path "${DATA_ROOT:-data}/$DATASET" --checkpoint_path "$CHECKPOINT" \
    ${META_ROOT:+--meta "$META_ROOT/$DATASET.json"} --save_path "results/$DATASET" --metrics "$METRICS" "$@"
