# Sourced by the table and figure scripts, after environment.sh: the runs, shared by all tables that need them.
#
# A VARIANT is a method with its flags. Its results are RESULTS/VARIANT/seedN/DATASET/metrics.json, its trainings
# CHECKPOINTS/VARIANT/trained_on_DATASET/seedN/. What is finished is not repeated, what was interrupted goes on, and
# data sets that are not there are named and left out. The trainings are the tables' own: what train_mvtec.sh and
# train_visa.sh have trained is not taken over, for it may have been made with other flags.
#
# Variables, with their defaults:
#
#   DATA_ROOT=data               where the data sets are, each in DATA_ROOT/KEY
#   META_ROOT=                   where their descriptions are, as META_ROOT/KEY.json, if data lie on a read-only disk
#   READ_AS=                     "released": images and masks as the authors' code reads them
#   SEEDS=111                    seeds of the trainings; several ("111 112 113") give mean and standard deviation
#   RESULTS=results/tables, CHECKPOINTS=checkpoints/tables
#   MODEL_FLAGS=                 backbone of all methods but WinCLIP, such as "--pretrained ViT-L-14-336px.pt"
#   WINCLIP_FLAGS=               backbone of WinCLIP
#   ANOMALYCLIP_FLAGS, ANOMALYCLIP_TRAINING   the paper's settings, see below; other backbones have other blocks
#   TEST_FLAGS=                  of test.py, which add to what it measures, such as "--more_metrics"
#   MACHINE_FLAGS=               what results do not depend on, such as "--device cuda:1 --num_workers 8"
#   DATA_SETS=, AUXILIARY=       sets to test instead of the table's, and the set to train on instead of the paper's
#   LAUNCHER=                    "-m torch.distributed.run --nproc_per_node 4" takes four GPUs
#   READER_FLAGS=                of scripts/paper/read_results.py, such as --no_paper
#
# The scripts' arguments are the variants to run, all if there are none. Run one script at a time in a RESULTS folder.

DATA_ROOT=${DATA_ROOT:-data}
READING=${READ_AS:+--read_as $READ_AS}
SEEDS=${SEEDS:-111}
RESULTS=${RESULTS:-results/tables}
CHECKPOINTS=${CHECKPOINTS:-checkpoints/tables}
MODEL_FLAGS=${MODEL_FLAGS:-}
WINCLIP_FLAGS=${WINCLIP_FLAGS:-}
# ${NAME-VALUE}: the paper's settings only where the variable is unset; an empty one stands for train.py's defaults.
ANOMALYCLIP_FLAGS=${ANOMALYCLIP_FLAGS-$PAPER_FLAGS}
ANOMALYCLIP_TRAINING=${ANOMALYCLIP_TRAINING-$PAPER_TRAINING}
TEST_FLAGS=${TEST_FLAGS:-}
MACHINE_FLAGS=${MACHINE_FLAGS:-}
DATA_SETS=${DATA_SETS:-}
AUXILIARY=${AUXILIARY:-}
LAUNCHER=${LAUNCHER:-}
READER_FLAGS=${READER_FLAGS:-}
UNTRAINED_SEED=111 # methods without training give the same result for every seed and are run once

ONLY="$*"    # variants asked for
KNOWN=       # variants of this script
READY=       # data sets that can be used
MVTEC_FLAGS= # for trainings on MVTec AD alone
VISA_FLAGS=  # for trainings on VisA alone
BACKBONES=   # backbones that were asked for, each as NAME:EXIT_CODE
FAILED=      # what ended with an error, one line each

trap 'exit 130' INT # or the next run would begin

case " $ONLY" in
    *" -"*)
        echo "error: the arguments are variants, not flags ($ONLY); for flags see MODEL_FLAGS in scripts/paper/runs.sh" >&2
        exit 2
        ;;
esac

# data_sets TABLE: the data sets of this table; names those that are not there.
data_sets() {
    local keys key
    keys=$("$PYTHON" scripts/paper/tables.py ${DATA_SETS:-$1} | cut -d ' ' -f 1)
    TESTED=
    for key in $keys; do
        if data_ready "$key"; then TESTED="$TESTED $key"; else echo "skipped: $key ($REASON)"; fi
    done
}

# data_ready KEY: whether a data set can be used, with its meta.json made if need be; if not, REASON says why.
data_ready() {
    local root=$DATA_ROOT/$1 generator=generate_dataset_json/$1.py meta=${META_ROOT:+$META_ROOT/$1.json}
    meta=${meta:-$root/meta.json}
    case " $READY " in *" $1 "*) return 0 ;; esac
    if [ "$1" = colondb_train ] && [ ! -f "$meta" ]; then
        REASON="no $meta; make it with $generator"
        return 1
    fi
    if [ ! -d "$root" ]; then
        REASON="no folder $root"
        return 1
    fi
    if [ ! -f "$meta" ]; then
        if [ ! -f "$generator" ]; then
            REASON="no $meta; make it with generate_dataset_json/custom.py"
            return 1
        fi
        if ! "$PYTHON" "$generator" --root "$root" --out "$meta"; then
            REASON="$generator cannot read $root, see above"
            return 1
        fi
    fi
    READY="$READY $1"
}

# auxiliary_of KEY: what is trained on to test this data set.
auxiliary_of() {
    if [ -n "$AUXILIARY" ]; then echo "$AUXILIARY"; elif [ "$1" = mvtec ]; then echo visa; else echo mvtec; fi
}

# weights_ready FLAG...: whether the weights that the flags name are on this machine, downloaded if need be. There are
# two backbones, WinCLIP's and that of all others; each is asked for once.
weights_ready() {
    local backbone="all methods but winclip" status=0
    case " $* " in *" --method winclip "*) backbone=winclip ;; esac
    case "$BACKBONES" in
        *"($backbone: 0)"*) return 0 ;;
        *"($backbone: "*) return 1 ;;
    esac
    "$PYTHON" scripts/paper/weights.py "$@" || status=$?
    [ "$status" -ne 130 ] || exit 130
    BACKBONES="$BACKBONES($backbone: $status)"
    [ "$status" -ne 0 ] || return 0
    FAILED="$FAILED  weights of $backbone (exit code $status)
"
    return 1
}

# metrics_of KEY: test.py's --metrics for a data set.
metrics_of() { "$PYTHON" scripts/paper/tables.py "$1" | cut -d ' ' -f 2; }

# The methods of the paper, each with the flags that it shares with its variants.

clip_baselines() {
    untrained clip --method clip $MODEL_FLAGS
    untrained clip_ac --method clip_ac $MODEL_FLAGS
    untrained winclip --method winclip $WINCLIP_FLAGS
}

# vand VARIANT: as its authors trained it, 3 epochs and mosaics on MVTec AD, 15 epochs on other sets.
vand() { MVTEC_FLAGS="--epoch 3 --mosaics 0.2" trained "$1" --method vand $MODEL_FLAGS; }

coop() { trained coop --method coop $MODEL_FLAGS; }

# learned_prompts VARIANT [FLAG...]: AnomalyCLIP, differing by the flags.
learned_prompts() {
    local variant=$1
    shift
    trained "$variant" --method anomalyclip $ANOMALYCLIP_FLAGS $ANOMALYCLIP_TRAINING $MODEL_FLAGS "$@"
}

# hand_written_prompts VARIANT KIND [FLAG...]: AnomalyCLIP's features with prompts that are not trained.
hand_written_prompts() {
    local variant=$1 kind=$2
    shift 2
    untrained "$variant" --method anomalyclip $ANOMALYCLIP_FLAGS $MODEL_FLAGS --prompt "$kind" "$@"
}

# Methods that the paper does not have: run if they are named, or all with "newer_methods all".
newer_methods() {
    [ -n "$ONLY" ] || [ "${1:-}" = all ] || return 0
    MVTEC_FLAGS="--n_ctx 12 --ab_ctx 13 --depth 10 --t_n_ctx 2" VISA_FLAGS="--n_ctx 13 --ab_ctx 13 --depth 9 --t_n_ctx 4" \
        trained glocalclip --method glocalclip $MODEL_FLAGS # its authors' settings
    trained af_clip --method af_clip $MODEL_FLAGS
    trained mrad_tf --method mrad --training_free $MODEL_FLAGS
    trained mrad_ft --method mrad $MODEL_FLAGS
    trained uniadet --method uniadet $MODEL_FLAGS
}

# untrained VARIANT FLAG...: test a method that is not trained on all data sets.
untrained() {
    local variant=$1 key
    shift
    asked_for "$variant" || return 0
    set -- "$@" $READING $TEST_FLAGS
    find_unfinished "$variant" "$UNTRAINED_SEED" "$*" $TESTED
    [ -n "$UNFINISHED" ] || return 0
    if ! weights_ready "$@"; then
        echo "skipped: $variant on$UNFINISHED (no weights, see above)"
        return 0
    fi
    for key in $UNFINISHED; do
        run_test "$variant" "$UNTRAINED_SEED" "$key" "$*" "$@"
    done
}

# trained VARIANT FLAG...: train a method (flags are train.py's), once per auxiliary data set and seed, and test it.
trained() {
    local variant=$1 auxiliary seed key keys flags description
    shift
    asked_for "$variant" || return 0
    for auxiliary in ${AUXILIARY:-mvtec visa}; do
        flags="$*${READING:+ $READING}"
        [ "$auxiliary" != mvtec ] || flags="$flags${MVTEC_FLAGS:+ $MVTEC_FLAGS}"
        [ "$auxiliary" != visa ] || flags="$flags${VISA_FLAGS:+ $VISA_FLAGS}"
        description="$flags${TEST_FLAGS:+ $TEST_FLAGS}, trained on $auxiliary"
        keys=
        for key in $TESTED; do
            [ "$(auxiliary_of "$key")" != "$auxiliary" ] || keys="$keys $key"
        done
        for seed in $SEEDS; do
            find_unfinished "$variant" "$seed" "$description" $keys
            [ -n "$UNFINISHED" ] || continue
            if ! run_training "$variant" "$seed" "$auxiliary" "$flags"; then
                echo "skipped: $variant on$UNFINISHED ($REASON)"
                continue
            fi
            for key in $UNFINISHED; do
                run_test "$variant" "$seed" "$key" "$description" --checkpoint_path "$CHECKPOINT" $READING $TEST_FLAGS
            done
        done
    done
}

# find_unfinished VARIANT SEED DESCRIPTION KEY...: UNFINISHED is then the data sets that have no result yet.
find_unfinished() {
    local variant=$1 seed=$2 description=$3 key
    shift 3
    UNFINISHED=
    for key in "$@"; do
        is_finished "$(result_of "$variant" "$seed" "$key")" "$description" || UNFINISHED="$UNFINISHED $key"
    done
}

asked_for() {
    KNOWN="$KNOWN $1"
    case " ${ONLY:-$1} " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

result_of() { echo "$RESULTS/$1/seed$2/$3/metrics.json"; }

# is_finished FILE FLAGS: whether a run left this file; one that left it with other flags ends the script.
is_finished() {
    local folder=${1%/*}
    [ -f "$1" ] || return 1
    if [ -f "$folder/flags.txt" ] && [ "$(cat "$folder/flags.txt")" != "$2" ]; then
        echo "error: $folder was made with other flags ($(cat "$folder/flags.txt")) than now ($2);" \
            "remove it, or set RESULTS and CHECKPOINTS to other folders" >&2
        exit 2
    fi
}

# run_training VARIANT SEED AUXILIARY FLAGS: train if that is not done; CHECKPOINT is then the last one.
run_training() {
    local variant=$1 seed=$2 auxiliary=$3 flags=$4 folder=$CHECKPOINTS/$1/trained_on_$3/seed$2
    if ! weights_ready $flags; then
        REASON="no weights, see above"
        return 1
    fi
    if ! is_finished "$folder/flags.txt" "$flags"; then
        if ! data_ready "$auxiliary"; then
            REASON="nothing to train on: $REASON"
            return 1
        fi
        attempt "training $variant on $auxiliary, seed $seed" \
            "$PYTHON" $LAUNCHER train.py --dataset "$auxiliary" --train_data_path "$DATA_ROOT/$auxiliary" \
            ${META_ROOT:+--meta "$META_ROOT/$auxiliary.json"} --save_path "$folder" --seed "$seed" --resume --keep_checkpoints 1 $flags $MACHINE_FLAGS || return 1
        echo "$flags" >"$folder/flags.txt"
    fi
    CHECKPOINT=$folder/epoch_$(ls "$folder" | sed -n 's/^epoch_\([0-9]*\)\.pth$/\1/p' | sort -n | tail -n 1).pth
}

# run_test VARIANT SEED KEY DESCRIPTION FLAG...: test one data set.
run_test() {
    local variant=$1 seed=$2 key=$3 description=$4 file
    file=$(result_of "$variant" "$seed" "$key")
    shift 4
    attempt "testing $variant on $key, seed $seed" \
        "$PYTHON" $LAUNCHER test.py --dataset "$key" --data_path "$DATA_ROOT/$key" \
        ${META_ROOT:+--meta "$META_ROOT/$key.json"} --save_path "${file%/*}" \
        --metrics "$(metrics_of "$key")" --seed "$seed" "$@" $MACHINE_FLAGS || return 0
    echo "$description" >"${file%/*}/flags.txt"
}

# attempt WHAT COMMAND...: run it; a failure is remembered for the end, only an interruption ends the script.
attempt() {
    local what=$1 status=0
    shift
    echo "$what"
    "$@" || status=$?
    [ "$status" -ne 130 ] || exit 130
    [ "$status" -ne 0 ] || return 0
    REASON="$what failed"
    FAILED="$FAILED  $what (exit code $status)
"
    return 1
}

# show TABLE: print the table, write it into RESULTS, and say what went wrong.
show() {
    local variant
    for variant in $ONLY; do
        case " $KNOWN " in *" $variant "*) continue ;; esac
        echo "error: $1 has no variant $variant; give some of:$KNOWN" >&2
        exit 2
    done
    mkdir -p "$RESULTS"
    echo
    "$PYTHON" scripts/paper/read_results.py "$1" --results "$RESULTS" ${DATA_SETS:+--data_sets $DATA_SETS} $READER_FLAGS
    [ -z "$FAILED" ] || {
        printf 'error: not everything could be run, see the messages above:\n%s' "$FAILED" >&2
        exit 1
    }
}
