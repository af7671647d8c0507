"""Models are Hugging Face's: built without memory, read and written one expert at a time.

| file | decides or executes | in -> out |
|---|---|---|
| families.py | decides | any transformers model -> its MoE layers, one expert as one chunk |
| routers.py | decides | a model's MoE layers -> routers, their logits and balancing bias |
| build.py | executes | configuration -> model on the meta device, initial values by name |
| attention.py, causal_blocks.py | executes | packed documents -> attention within each |
| norms.py | executes | a family's RMS norms -> one autograd node each |
| hub/ | executes | a Hugging Face folder <-> dense tensors and single experts |
| tokenizer.py | executes | a Hugging Face folder -> its tokenizer |
| pretrained.py | executes | a Hugging Face folder -> its whole model |
| loss.py | executes | hidden states -> summed cross-entropy, without whole logits |
"""
