"""The stages of training, each a `Task`; modules load torch when imported."""

__all__ = [
    "first_epoch", "metric", "pretrain", "prompts", "saliency", "schedule", "step", "task",
]  # fmt: skip
