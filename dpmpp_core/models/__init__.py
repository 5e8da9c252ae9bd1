"""Networks, from the encoder to the whole model; imports nothing, as its modules load torch."""
