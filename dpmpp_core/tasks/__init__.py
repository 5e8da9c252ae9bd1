"""The stages of training, each a `Task`."""
