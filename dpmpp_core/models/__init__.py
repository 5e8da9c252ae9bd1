"""Networks, from the encoder to the whole model; modules load torch when imported."""

__all__ = [
    "attention", "bands", "batch_norm", "clip", "distributed", "embedded", "encoder",
    "mask_generator", "person_masks", "pictures", "pixels", "prompts", "prototypes", "reid",
    "saliency", "saved", "sources", "tensors", "timm_vit", "towers", "visibility", "weights",
]  # fmt: skip
