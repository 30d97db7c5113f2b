#!/usr/bin/env bash
# Figure 3 of the paper, attention maps of one patch (row and column counted from 0):
#     bash scripts/figure3.sh [IMAGE ROW COLUMN] [arguments of attention_maps.py]
# Without an image: MVTec AD's first anomalous bottle and the patch with most of its anomaly. DATA_ROOT says where the data
# sets are (data). Offline on the embedded backbone: bash scripts/figure3.sh IMAGE ROW COLUMN --model tiny
# Written to results/figure3.png.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

USAGE="usage: bash scripts/figure3.sh [IMAGE ROW COLUMN] [arguments of attention_maps.py]"
if [ $# -ge 1 ] && [[ $1 != -* ]]; then
    [ $# -ge 3 ] || { echo "error: $1 without its patch; $USAGE" >&2; exit 2; }
    QUERY=(--image "$(from_caller "$1")" --patch "$2" "$3")
    shift 3
else
    BOTTLE=${DATA_ROOT:-data}/mvtec/bottle
    IMAGE=$BOTTLE/test/broken_large/000.png
    MASK=$BOTTLE/ground_truth/broken_large/000_mask.png
    for file in "$IMAGE" "$MASK"; do
        [ -f "$file" ] || { echo "error: $file is missing; set DATA_ROOT or name an image; $USAGE" >&2; exit 2; }
    done
    QUERY=(--image "$IMAGE" --mask "$MASK")
fi
make_environment
"$PYTHON" scripts/paper/attention_maps.py "${QUERY[@]}" "$@"
