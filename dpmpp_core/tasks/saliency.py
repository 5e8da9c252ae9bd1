"""Stage 0: learn person masks from identity labels alone (SPT, AAAI 2024).

A patch belongs to the person if the identity can be recognised with it and not without it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpmpp_core.config import Config
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.losses.saliency import area_loss, background_penalty
from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.models.distributed import gather, gather_together
from dpmpp_core.models.reid import batch_norm_neck, start_clip
from dpmpp_core.models.saliency import SaliencyModel
from dpmpp_core.tasks.schedule import warmup_cosine
from dpmpp_core.tasks.task import Task

WARMUP_EPOCHS = 1
WEIGHT_DECAY = 1e-4
TRIPLET_MARGIN = 0.3


class SaliencyTask(Task):
    """Three passes with shared weights: the whole picture, its person, its background.

    Args:
        config: the run's configuration.
        classes: number of training identities.
        steps_per_epoch: length of the step plan.
    """

    def __init__(self, config: Config, classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, config.saliency.epochs, steps_per_epoch)
        ratio = config.saliency.target_ratio
        with torch.random.fork_rng(devices=[]):
            clip = start_clip(config)
            torch.manual_seed(config.seed)
            self.model = SaliencyModel(config.model, config.data, clip, ratio)
            width = self.model.encoder.spaces["visual"]
            self.neck = batch_norm_neck(width)
            self.classifier = nn.Linear(width, classes, bias=False)
            nn.init.normal_(self.classifier.weight, std=0.001)

    @property
    def updates_all(self) -> bool:
        """See `Task`."""
        return False  # no loss is in the joint space

    def forward(
        self, batch: Mapping[str, Tensor], phase: str = "joint"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute one step's losses.

        Args:
            batch: `images` uint8 [B, H, W, 3]; `labels` int64 [B].
            phase: there is one.

        Returns:
            weighted losses; the accuracy of each pass, and the mask's share and spread.
        """
        section = self.config.saliency
        images = self.normalise(batch["images"])
        with self.autocast():
            encoded, person = self.model(images)
            weights = person.flatten(1)
            # One pass over both: a GPU launches half of the kernels.
            both = torch.cat([weights, 1 - weights])
            kept, rest = self.model.encoder(images.repeat(2, 1, 1, 1), both).visual.chunk(2)
        labels = gather(batch["labels"])
        local = {"person": weights, "feature": encoded.visual, "kept": kept, "rest": rest}
        gathered = gather_together({name: x.float() for name, x in local.items()})
        person, feature = gathered["person"], gathered["feature"]
        whole, kept, rest = (self._logits(gathered[n]) for n in ("feature", "kept", "rest"))
        losses = {
            "whole": cross_entropy(whole, labels),
            "person": cross_entropy(kept, labels),
            "triplet": section.triplet_weight * batch_hard_triplet(feature, labels, TRIPLET_MARGIN),
            "area": section.area_weight * area_loss(person, section.target_ratio),
            "background": section.penalty_weight * background_penalty(whole, rest),
        }
        passes = {"whole": whole, "person": kept, "background": rest}
        with torch.no_grad():
            report = {
                f"accuracy_{name}": (logits.argmax(dim=1) == labels).float().mean()
                for name, logits in passes.items()
            }
            report["share"] = (person >= 0.5).float().mean()
            report["undecided"] = ((person > 0.1) & (person < 0.9)).float().mean()
        return losses, report

    def _logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.neck(features))

    def optimiser(self) -> torch.optim.Optimizer:
        """See `Task`."""
        section = self.config.saliency

        def rate(name: str) -> float:
            return section.encoder_lr if name.startswith("model.encoder.") else section.lr

        groups = self.groups_by_rate(rate, 1.0, WEIGHT_DECAY)
        return torch.optim.Adam(groups, fused=True)

    def lr_factor(self, step: int) -> float:
        """See `Task`."""
        return warmup_cosine(step / self.steps_per_epoch, WARMUP_EPOCHS, self.epochs, 0.01)
