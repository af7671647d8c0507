"""A decoder's forward pass in C++, compiled for the machine it runs on.

| file | decides or executes | in -> out |
|---|---|---|
| forward.cpp | executes | one step's tokens -> logits, layer after layer |
| product.h | executes | rows, packed weights -> their products |
| attention.h | executes | queries, paged keys and values -> attention |
| adapters.h | executes | rows, adapters in slots -> what they add to a projection |
| experts.h | executes | router logits -> rows sorted by expert, and back |
| team.h | executes | a loop -> its turns, on the threads that have a core |
| pages.h | executes | memory of our own, or shared -> large pages |
| words.h | - | vectors of floats, and of pairs of bfloat16 |
| registers.h | - | vectors of 16 lanes, in as many registers as a machine needs |
| library.py | executes | the sources -> a library, once a machine; its structs |
"""
