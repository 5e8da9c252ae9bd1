"""Distributed training: batches from Ray Data, steps on Ray Train."""
