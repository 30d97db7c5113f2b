#!/usr/bin/env bash
# All methods and ablations in miniature, offline, on a CPU: the table of all methods, tables 1, 4 and 5 and figures 5
# and 6 on the embedded tiny backbone, trained on one synthetic data set and tested on the other. It shows that everything runs, and reproduces no
# number of the paper: the pictures are rendered, and the backbone knows nothing else. Steps that are done are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment

export DATA_ROOT=data/synthetic META_ROOT= READ_AS= DATA_SETS=target AUXILIARY=auxiliary READER_FLAGS=--no_paper TEST_FLAGS=--more_metrics
export MODEL_FLAGS="--model tiny" WINCLIP_FLAGS="--model tiny"
export ANOMALYCLIP_FLAGS="--features_list 6" ANOMALYCLIP_TRAINING=
export MACHINE_FLAGS="--cache disk --cache_dir cache/tables_tiny ${MACHINE_FLAGS:-}"
export RESULTS=results/tables_tiny CHECKPOINTS=checkpoints/tables_tiny

"$PYTHON" synthetic/render.py --out "$DATA_ROOT"
for key in $AUXILIARY $DATA_SETS; do
    set=$DATA_ROOT/$key
    [ -f "$set/meta.json" ] || "$PYTHON" generate_dataset_json/custom.py --root "$set" --mvtec_layout
done
TABLES="table_methods table1 table4 table5 figure5 figure6"
for table in $TABLES; do bash "scripts/$table.sh"; done

echo
echo "All together, on rendered pictures and the tiny backbone (also in $RESULTS/):"
for table in $TABLES; do
    echo
    cat "$RESULTS/$table.md"
done
