#!/usr/bin/env bash
# The paper's training on MVTec AD's test split; its checkpoint tests all data sets but MVTec AD.
# DATA_ROOT says where the data sets are (data). Further arguments go to train.py.
exec bash "$(dirname "${BASH_SOURCE[0]}")/paper/train.sh" mvtec "$@"
