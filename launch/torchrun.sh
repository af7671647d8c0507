#!/usr/bin/env bash
# One node's part of a training job: torchrun with as many ranks as it has GPUs. Run the same command
# on every node; arguments go to `hecate train`. See launch/README.md for the variables.
#
#   NNODES=2 MASTER_ADDR=node0 launch/torchrun.sh configs/train/demo.yaml --set folder=/shared/runs
#
# SIGTERM, and SIGUSR1, to this script end the job behind the step under way, with a checkpoint of
# it; the same command goes on from there.
set -euo pipefail

if [ "$#" -eq 0 ]; then
    echo "usage: [NNODES=N MASTER_ADDR=HOST] $0 CONFIG [options of hecate train]" >&2
    exit 2
fi
: "${NNODES:=1}" "${MASTER_PORT:=29400}" "${RUN_ID:=hecate}" "${MAX_RESTARTS:=3}"
: "${SAVE_S:=300}"
if [ "$NNODES" != 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
    echo "error: NNODES is $NNODES and MASTER_ADDR is not set" >&2
    echo "  fix:      set it to the name or address of one of the nodes, the same on all" >&2
    exit 2
fi
: "${MASTER_ADDR:=localhost}"

python=${PYTHON:-python}
if [ -z "${NPROC_PER_NODE:-}" ]; then
    gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
    NPROC_PER_NODE=$((gpus > 0 ? gpus : 1))
fi
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    threads=$(($(nproc) / NPROC_PER_NODE))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# A store of its own for each start of the ranks: in a shared one they would find the addresses of
# those before them.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

options=(
    --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" --max-restarts "$MAX_RESTARTS"
    --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-id "$RUN_ID"
    --shutdown-timeout "$SAVE_S"
)
if [ -n "${NODE_RANK:-}" ]; then # else torchrun finds out by itself whose address that is
    host=$([ "$NODE_RANK" = 0 ] && echo true || echo false)
    options+=(--rdzv-conf "is_host=$host")
fi
if [ -n "${LOCAL_ADDR:-}" ]; then # where the host's name leads the other nodes nowhere
    options+=(--local-addr "$LOCAL_ADDR")
fi
resume=(--resume auto)
for word in "$@"; do
    if [[ $word == --resume || $word == --resume=* ]]; then resume=(); fi
done

# torchrun hands SIGTERM on to its ranks and waits for them; of SIGUSR1 it knows nothing, so it is
# told to ignore it, and its ranks, which inherit that until they listen, are told here.
(
    trap '' USR1
    exec "$python" -m torch.distributed.run "${options[@]}" -m hecate train "$@" "${resume[@]}"
) &
launcher=$!
# shellcheck disable=SC2329 # the trap calls it
tell_ranks() {
    local ranks
    read -r -a ranks <"/proc/$launcher/task/$launcher/children" || true
    [ "${#ranks[@]}" -eq 0 ] || kill -USR1 "${ranks[@]}" 2>/dev/null || true
}
trap 'tell_ranks' USR1
trap 'kill -TERM "$launcher" 2>/dev/null || true' TERM INT

code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do # a signal ends `wait`, not the job
    code=0
    wait "$launcher" || code=$?
done
exit "$code"
