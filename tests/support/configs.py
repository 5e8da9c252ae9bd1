"""Overrides of configurations for tests."""

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

# Of TEXTLESS_CONFIG: an encoder of 64 numbers, and no stage 1. For tests of what comes after it.
TEXTLESS_CONFIG = "market1501_vit"
TEXTLESS = [
    *SMALL,
    "model.backbone=timm/test_vit",
    "model.pretrained=null",
    "metric.lr=1e-3",
    "metric.encoder_lr=1e-3",
    "saliency.provider=spectral",
]
