#!/usr/bin/env bash
# Table 2 of the paper, medical data sets: bash scripts/table2.sh [VARIANT...]
# The trainings are those of table 1, on MVTec AD. scripts/paper/runs.sh has the variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
source scripts/paper/runs.sh

data_sets table2
clip_baselines # clip, clip_ac, winclip
vand vand
coop
learned_prompts anomalyclip
newer_methods # if they are named: glocalclip, af_clip, mrad_tf, mrad_ft, uniadet
show table2
