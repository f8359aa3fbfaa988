"""LlamaGen's own parameter layout, and ours.

Ours has the released names below `backbone.`, except that the output matrix belongs to the head."""

from torch import Tensor

from llamagen.build import ARModel


def our_name(official: str) -> str:
    """`layers.0.attention.wo.weight` -> `backbone.layers.0...`; `output.weight` -> `head.output.weight`."""
    return f"head.{official}" if official == "output.weight" else f"backbone.{official}"


def load_official(model: ARModel, state: dict[str, Tensor]) -> None:
    """Load a released class-conditional state dict. Raises RuntimeError on a missing or unexpected key."""
    # KV caches are buffers of the released class: they appear in a state dict saved after sampling.
    renamed = {our_name(name): value for name, value in state.items() if ".kv_cache." not in name}
    model.load_state_dict(renamed)
