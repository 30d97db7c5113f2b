#!/usr/bin/env bash
# Figure 6 of the paper, DPAM with Q-Q, K-K and V-V attention: bash scripts/figure6.sh [VARIANT...]
# Writes RESULTS/figure6.png. scripts/paper/runs.sh has the variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
source scripts/paper/runs.sh

data_sets figure6
learned_prompts dpam_qq --dpam_mode qq
learned_prompts dpam_kk --dpam_mode kk
learned_prompts anomalyclip # V-V
show figure6
