"""LoRA adapters in serving: many of them over one model, mixed in one batch.

CaraServe (2401.11240) and Toppings (USENIX ATC 2025) are where slots, forms and costs come from.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | decides | the user's settings |
| facts.py | decides | who an adapter is, without its weights |
| registry.py | decides | names -> adapters |
| names.py | executes | requests and a watched folder -> names, as long as the engine lives |
| watch.py | executes | a folder of adapters -> what came, changed and went |
| targets.py | decides | a model -> the projections that an adapter may change |
| adapters.py | decides | an adapter's weights in memory |
| peft_folder.py | executes | PEFT's or Hecate's folder -> an adapter, checked |
| host.py | executes | adapters in the host's memory |
| cold.py | decides | a prompt, a rank -> wait, run at once layer by layer, or with the host |
| arrival.py | executes | an adapter of which some layers are there |
| assist.py | executes | processes that compute adapters' shares on the host |
| step_model.py | decides | rows, ranks, prompts -> seconds; measured ones -> the model |
| profile.py | executes | a file <-> a step model and what it was measured on |
| placement.py | decides | a request, replicas -> the order in which they are tried |
| loader.py | executes | disk and host -> slots on the device, beside the steps |
| slots.py | decides | rows of the packed halves -> each adapter's place; who gives way |
| gate.py | decides | requests -> which may be scheduled, which wait for their adapter |
| costs.py | decides | a batch's groups -> padded or in segments |
| plan.py | decides | a step's rows and their adapters -> the products to compute |
| packed.py | executes | the halves of all adapters of one projection; both forms of product |
| experts.py | executes | a layer of routed experts with adapters |
| layers.py | executes | the above beside the layers of a loaded model |
"""
