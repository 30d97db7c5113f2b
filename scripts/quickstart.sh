#!/usr/bin/env bash
# The whole job in miniature, offline, on a CPU: render two synthetic data sets, learn the two prompts on one of them with
# the embedded tiny backbone, find anomalies on the other. Steps that are done are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment

DATA=data/synthetic
RUN=results/quickstart
SEED=${SEED:-111}

"$PYTHON" synthetic/render.py --out "$DATA"
for set in auxiliary target; do
    [ -f "$DATA/$set/meta.json" ] || "$PYTHON" generate_dataset_json/custom.py --root "$DATA/$set" --mvtec_layout
done

[ -f "$RUN/training/epoch_15.pth" ] || "$PYTHON" train.py --model tiny --dataset auxiliary \
    --train_data_path "$DATA/auxiliary" --save_path "$RUN/training" --features_list 6 --seed "$SEED" --resume

if [ -f "$RUN/metrics.json" ]; then
    cat "$RUN/table.md"
else
    "$PYTHON" test.py --dataset target --data_path "$DATA/target" \
        --checkpoint_path "$RUN/training/epoch_15.pth" --save_path "$RUN" --vis
fi
echo
echo "Zero-shot on $DATA/target with prompts learned on $DATA/auxiliary, percent."
echo "Metrics: $RUN/metrics.json   Pictures (image, mask, heat map): $RUN/vis/"
