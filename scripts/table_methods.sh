#!/usr/bin/env bash
# All methods under one protocol, with all metrics, a table that the paper does not have: bash scripts/table_methods.sh
# [VARIANT...]. Trainings are those of table 1. scripts/paper/runs.sh has the variables; here RESULTS is results/methods.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
RESULTS=${RESULTS:-results/methods} TEST_FLAGS=${TEST_FLAGS:---more_metrics}
source scripts/paper/runs.sh

data_sets table_methods
clip_baselines # clip, clip_ac, winclip
vand vand
coop
learned_prompts anomalyclip
newer_methods all # glocalclip, af_clip, mrad_tf, mrad_ft, uniadet
show table_methods
