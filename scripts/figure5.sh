#!/usr/bin/env bash
# Figure 5 of the paper, what object-agnostic prompts gain over object-aware ones: bash scripts/figure5.sh [VARIANT...]
# Writes RESULTS/figure5.png. scripts/tables.sh has the variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
source scripts/tables.sh

data_sets mvtec visa mpdd btad sdd dagm dtd headct brainmri br35h covid19 isic colondb clinicdb kvasir endo tn3k
learned_prompts object_aware --prompt object-aware
learned_prompts anomalyclip # object-agnostic
show figure5
