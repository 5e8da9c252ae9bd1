"""Networks: the encoder, the mask generator, the prompts, the prototypes and the whole model."""
