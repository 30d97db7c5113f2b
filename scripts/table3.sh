#!/usr/bin/env bash
# Table 3 of the paper, medical data sets after training on one: bash scripts/table3.sh [VARIANT...]
# DATA_ROOT/colondb_train is CVC-ColonDB with normal images; generate_dataset_json/colondb_train.py describes it.
# scripts/paper/runs.sh has the variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
AUXILIARY=${AUXILIARY:-colondb_train}
source scripts/paper/runs.sh

data_sets table3
vand vand_colon
learned_prompts anomalyclip_colon
show table3
