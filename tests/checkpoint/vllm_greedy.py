"""Run in vLLM's own environment: continue a prompt greedily with each folder's model.

python vllm_greedy.py PROMPT_JSON NUM_TOKENS FOLDER...    prints one JSON line for each folder
"""

from __future__ import annotations

import json
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    prompt, num_tokens, folders = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    sampling = SamplingParams(
        max_tokens=num_tokens, temperature=0, ignore_eos=True, detokenize=False, logprobs=1
    )
    for folder in folders:
        llm = LLM(
            model=folder,
            dtype="float32",  # left to itself it would take bfloat16
            skip_tokenizer_init=True,
            enforce_eager=True,  # compiling would take longer than the rest
            max_model_len=len(prompt) + num_tokens,
            max_num_seqs=1,
        )
        (request,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        (answer,) = request.outputs
        tokens = list(answer.token_ids)
        logprobs = [
            step[token].logprob for step, token in zip(answer.logprobs, tokens, strict=True)
        ]
        print("\n" + json.dumps({"folder": folder, "tokens": tokens, "logprobs": logprobs}))
        sys.stdout.flush()
        del llm


main()
