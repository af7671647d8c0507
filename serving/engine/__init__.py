"""Engines: what answers requests token by token.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | - | what an engine is, for everything above it |
| config.py | - | the model, and what an engine may use for it |
| build.py | executes | a configuration -> an engine |
| native.py | executes | requests <-> a thread that computes step after step |
| vllm.py | executes | requests <-> vLLM, in a process of its own |
| vllm_terms.py | decides | configurations and requests -> vLLM's words |
| worker.py | executes | one step: schedule, compute, sample, tell |
| adapted.py | executes | steps in which rows have adapters, by our kernels |
| residents.py | decides | rows and slots -> adapters as our kernels read them |
| adapters.py | executes | LoRA adapters' slots and loads; steps in which rows have adapters |
| checks.py | decides | a request -> whether it can be answered here at all |
| batch.py | decides | pieces of sequences -> one packed batch |
| attention.py | executes | queries, paged keys and values -> attention |
| layout.py | decides | chunks of a step -> its pieces, and whose its logits are |
| forward.py | executes | pieces of sequences -> logits, by the model's own code |
| compiled.py | executes | the same by our kernels, over packed weights |
| packing.py | executes | weights -> panels, as the kernels read them |
| panels.py | executes | memory for panels: our own, or one for all replicas of a machine |
| structure.py | decides | a model -> where the weights are that our kernels know |
| kernels/ | executes | the kernels, in C++ |
| loading.py | executes | a Hugging Face folder -> a model with our attention |
| prepared.py | executes | a folder -> the same, so that all of it can be mapped |
| sampler.py | executes | logits, each answer's rules -> tokens |
| grammar.py | executes | a JSON schema, tokens so far -> tokens that may come next |
| text.py | decides | tokens -> text, whole characters, cut at stop strings |
"""
