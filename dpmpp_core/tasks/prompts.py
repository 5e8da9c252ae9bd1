"""Stage 1: words that describe each identity, learnt on cached image features (CLIP-ReID)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dpmpp_core.config import Config
from dpmpp_core.losses.contrast import supervised_contrast
from dpmpp_core.models.prompts import PromptLearner
from dpmpp_core.models.reid import start_clip
from dpmpp_core.models.weights import unit_text
from dpmpp_core.tasks.schedule import parameter_group, warmup_cosine
from dpmpp_core.tasks.task import Task


class PromptTask(Task):
    """Image-to-text and text-to-image contrast over random batches of cached features.

    Args:
        config: the run's configuration.
        features: float32 [N, P], joint features of the training images, test transforms.
        labels: int64 [N], class of each row.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, config: Config, features: Tensor, labels: Tensor) -> None:
        steps = -(-len(labels) // config.prompts.batch)  # the last one may be short, never empty
        super().__init__(config, config.prompts.epochs, steps)
        clip = start_clip(config)
        self.scale = clip.logit_scale.exp().item() if unit_text(config.model) else 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.prompts = PromptLearner(clip, config.model, int(labels.max()) + 1)
        self.register_buffer("features", self._comparable(features), persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.host_labels = labels  # where `batch` counts identities

    def _comparable(self, features: Tensor) -> Tensor:
        if unit_text(self.config.model):
            return nn.functional.normalize(features.float(), dim=1)
        return features.float()

    def batches(self, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield the batch of each step of the whole training from `start` (0-based) on.

        A batch depends only on (seed, epoch, step).
        """
        size, per_epoch = self.config.prompts.batch, self.steps_per_epoch
        for epoch in range(start // per_epoch, self.epochs):
            draw = np.random.default_rng((self.config.seed, 1, epoch))
            order = draw.permutation(len(self.host_labels))
            for step in range(max(0, start - epoch * per_epoch), per_epoch):
                yield self.batch(torch.from_numpy(order[step * size : (step + 1) * size]))

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the batch of cached features `rows`, int64 [B]; all of it in host memory.

        `classes`, int64 [C], are its identities, each of which is encoded once; `index`, int64 [B],
        is the place of each row's among them. A GPU would have to be waited for to count them.
        """
        classes, index = self.host_labels[rows].unique(return_inverse=True)
        return {"rows": rows, "classes": classes, "index": index}

    def forward(
        self, batch: Mapping[str, Tensor], phase: str = "joint"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the losses `image_to_text` and `text_to_image` of a batch of `batch`."""
        labels = self.labels[batch["rows"]]
        image = self.features[batch["rows"]]
        text = self._comparable(self.prompts(batch["classes"]))[batch["index"]]
        losses = {
            "image_to_text": supervised_contrast(image, text, labels, self.scale),
            "text_to_image": supervised_contrast(text, image, labels, self.scale),
        }
        return losses, {}

    def optimiser(self) -> torch.optim.Optimizer:
        """See `Task`."""
        section = self.config.prompts
        named = [("tokens", self.prompts.tokens)]
        groups = parameter_group(named, section.lr, 1.0, section.weight_decay)
        return torch.optim.Adam(groups, foreach=True)

    def lr_factor(self, step: int) -> float:
        """See `Task`."""
        section = self.config.prompts
        epoch = step / self.steps_per_epoch
        floor = section.min_lr / section.lr
        return warmup_cosine(epoch, section.warmup_epochs, section.epochs, floor)

    def trained_state(self) -> dict[str, Tensor]:
        """See `Task`; the frozen rest is rebuilt."""
        return {"tokens": self.prompts.tokens.detach()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Task`."""
        with torch.no_grad():
            self.prompts.tokens.copy_(state["tokens"])

    @torch.no_grad()
    def results(self) -> dict[str, Tensor]:
        """Return `texts` [C, P], the text prototypes, `scale` of image-text products, `tokens`."""
        labels = torch.arange(len(self.prompts.tokens), device=self.labels.device)
        texts = torch.cat([self._comparable(self.prompts(part)) for part in labels.split(256)])
        return {
            "texts": texts.cpu(),
            "scale": torch.tensor(self.scale),
            "tokens": self.prompts.tokens.detach().cpu(),
        }
