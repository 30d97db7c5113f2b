#!/usr/bin/env bash
# Table 1 of the paper, industrial data sets: bash scripts/table1.sh [VARIANT...]
# MVTec AD is tested after training on VisA, all others after training on MVTec AD. scripts/paper/runs.sh has the
# variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
source scripts/paper/runs.sh

data_sets table1
clip_baselines # clip, clip_ac, winclip
vand vand
coop
learned_prompts anomalyclip
newer_methods # if they are named: glocalclip, af_clip, mrad_tf, mrad_ft, uniadet
show table1
