"""vLLM's own offline interface in a process of its own, run by vLLM's environment as a script.

    python vllm_offline.py LLM_ARGUMENTS_JSON

It is asked as ``serving.bench.worker`` is, but only answers batches that are due at once; all of
vLLM runs in this process, without a second one to talk to.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from vllm import LLM, SamplingParams


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    began_s = time.monotonic()
    llm: Any = LLM(**json.loads(sys.argv[1]))
    print(json.dumps({"start_s": time.monotonic() - began_s}), file=answers)
    while line := sys.stdin.readline().strip():
        asked = json.loads(line)["asked"]
        prompts = [{"prompt_token_ids": prompt} for _, prompt, _ in asked]
        sampling = [
            SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
            for _, _, tokens in asked
        ]
        began_s = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began_s
        made = [len(output.outputs[0].token_ids) for output in outputs]
        print(json.dumps({"seconds": seconds, "tokens": made}), file=answers)


if __name__ == "__main__":
    main()
