#!/usr/bin/env bash
# The demonstration: train a small Mixture-of-Experts model on two processes, evaluate it, export it
# to a Hugging Face folder, generate from that folder, and serve it. `make demo` runs this; run it
# again to go on from where it was stopped. Arguments go to `hecate train` (such as --set train.steps=50).
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/demo
exported=runs/demo-hf
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
threads=$((cores / 2 > 0 ? cores / 2 : 1))
say() { printf '\n== %s\n' "$*"; }

say "Training on 2 processes: torchrun --nproc-per-node 2 -m hecate train configs/train/demo.yaml"
OMP_NUM_THREADS=$threads torchrun --standalone --nproc-per-node 2 \
    -m hecate train configs/train/demo.yaml --resume auto "$@"

say "Evaluating on files that it never saw: hecate eval $run"
hecate eval "$run"

say "Drawing the run: hecate report $run"
hecate report "$run"

say "Exporting: hecate export $run $exported"
hecate export "$run" "$exported"

say "Generating with plain transformers: hecate generate $exported 'def '"
hecate generate "$exported" $'def ' --max-tokens 100

say "Serving it, and asking through the openai client: python launch/ask.py $exported 'class '"
python launch/ask.py "$exported" $'class '

cat <<END

== What is where
  $run/checkpoints    checkpoints, which --resume auto continues from
  $run/report.html    the run as one page: curves, loads, time, events
  $run/metrics.jsonl  every metric of every logged step
  $run/wandb          the same for Weights & Biases: wandb sync $run/wandb/offline-run-*
  $run/config.yaml    the whole configuration that was run
  $exported             the model for transformers and vLLM

== What to run next (after: source .venv/bin/activate)
  hecate generate $exported "class Queue:" --temperature 0.6
  hecate serve $exported        and open http://127.0.0.1:8000
  hecate train configs/train/demo.yaml --print-config
  hecate train configs/train/demo.yaml --set name=mine --set data.path=YOUR_FOLDER
  hecate doctor
END
