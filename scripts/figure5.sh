#!/usr/bin/env bash
# Figure 5 of the paper, what object-agnostic prompts gain over object-aware ones: bash scripts/figure5.sh [VARIANT...]
# Writes RESULTS/figure5.png. scripts/paper/runs.sh has the variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
source scripts/paper/runs.sh

data_sets figure5
learned_prompts object_aware --prompt object-aware
learned_prompts anomalyclip # object-agnostic
show figure5
