"""Overrides of the demo configuration for tests."""

# Small enough to train in seconds; every part of the method is on.
SMALL = [
    "data.height=128",
    "data.width=64",
    "prompts.epochs=2",
    "metric.identities=4",
    "metric.images=2",
    "metric.epochs=2",
    "metric.warmup_epochs=1",
    "metric.precision=fp32",
    "augment.pad=4",
    "metric.loss.triplet=1",
    "metric.loss.heads=1",
    "metric.class_ignoring=true",
    "augment.erase=0.5",
    "occlusion.rolling=true",
]
