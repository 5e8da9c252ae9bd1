"""The stages of training, each a `Task`; imports nothing, as its modules load torch."""
