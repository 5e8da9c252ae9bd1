"""Distributed training: batches from Ray Data, steps on Ray Train.

`driver.fit` trains, on the images of a `TrainingSet`, with `Checkpoints`; `BatchPlan` feeds it.
"""
