#!/usr/bin/env bash
# The paper's training on VisA's test split; its checkpoint tests MVTec AD.
# DATA_ROOT says where the data sets are (data). Further arguments go to train.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment

"$PYTHON" train.py --dataset visa --train_data_path "${DATA_ROOT:-data}/visa" --save_path checkpoints/trained_on_visa \
    --features_list 24 --image_size 518 --batch_size 8 --epoch 15 --depth 9 --n_ctx 12 --t_n_ctx 4 --resume "$@"
