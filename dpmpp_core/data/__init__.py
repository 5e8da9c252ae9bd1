"""Data sets: layouts, manifests, images, training steps; the modules are the interface."""

__all__ = [
    "annotations", "augment", "captions", "donors", "files", "given_masks", "images",
    "inspection", "layouts", "manifest", "occlusion_ratios", "packed", "patience", "plan",
    "published", "quarantine", "sightings", "steps", "synthesis", "validation",
]  # fmt: skip
