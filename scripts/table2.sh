#!/usr/bin/env bash
# Table 2 of the paper, medical data sets: bash scripts/table2.sh [VARIANT...]
# The trainings are those of table 1, on MVTec AD. scripts/tables.sh has the variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
source scripts/tables.sh

data_sets headct brainmri br35h covid19 isic colondb clinicdb kvasir endo tn3k
clip_baselines # clip, clip_ac, winclip
vand vand
coop
learned_prompts anomalyclip
show table2
