#!/usr/bin/env bash
# Table 4 of the paper, one module after the other: bash scripts/table4.sh [VARIANT...]
# scripts/paper/runs.sh has the variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
source scripts/paper/runs.sh

data_sets table4
hand_written_prompts hand_written_no_dpam hand-written --dpam_layer 1 # base
hand_written_prompts hand_written hand-written                        # + T1, DPAM
learned_prompts no_deep_tokens --depth 1                              # + T2, object-agnostic prompts
learned_prompts anomalyclip                                           # + T3, learned tokens in the text encoder
show table4
