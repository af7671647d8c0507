"""A trainer whose model is frozen but for its adapters (LoRA)."""

from __future__ import annotations

from transformers.modeling_utils import PreTrainedModel

from hecate.fssdp import ShardedExperts
from hecate.models.lora import AdaptedLayer, is_adapter
from hecate.models.lora.initial import initial_adapters, initial_expert_adapter
from hecate.models.lora.share import TrainableShare, trainable_share
from hecate.train.dense import assign, named_dense


def freeze_all_but_adapters(model: PreTrainedModel) -> None:
    """Let only adapters train, those of linear layers and those that are the experts' chunks."""
    for name, parameter in named_dense(model):
        parameter.requires_grad_(is_adapter(name))


def fill_adapters(model: PreTrainedModel, experts: ShardedExperts, seed: int) -> None:
    """First values of every adapter on this rank."""
    parameters = dict(named_dense(model))
    shapes = ((name, tuple(parameter.shape)) for name, parameter in parameters.items())
    for name, value in initial_adapters(shapes, seed):
        assign(parameters[name], value)
    for shard in experts.shards:
        assert isinstance(shard.layer, AdaptedLayer)
        for expert_id in shard.expert_ids:
            shard.write(expert_id, initial_expert_adapter(shard.layer, expert_id, seed))


def share_of(model: PreTrainedModel, experts: ShardedExperts) -> TrainableShare:
    """How much of the model trains."""
    layers = [layer for layer in experts.layers if isinstance(layer, AdaptedLayer)]
    return trainable_share(named_dense(model), layers)
