#!/usr/bin/env bash
# Figure 4 of the paper, images, masks and anomaly maps:
#     bash scripts/figure4.sh DATASET [DATASET ...] [arguments of panels.py]
# Data sets without maps in results/DATASET/maps are tested first, as scripts/test.sh tests them. DATA_ROOT says where
# the data sets are (data). Written to results/figure4.png.
set -euo pipefail
DATASETS=()
while [ $# -ge 1 ] && [[ $1 != -* ]]; do
    DATASETS+=("$1")
    shift
done
USAGE="usage: bash scripts/figure4.sh DATASET [DATASET ...] [arguments of panels.py]"
[ ${#DATASETS[@]} -ge 1 ] || { echo "$USAGE" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment

for dataset in "${DATASETS[@]}"; do
    [ -f "results/$dataset/metrics.json" ] && [ -d "results/$dataset/maps" ] || bash scripts/test.sh "$dataset" --save_maps
done
"$PYTHON" scripts/paper/panels.py "${DATASETS[@]/#/results/}" "$@"
