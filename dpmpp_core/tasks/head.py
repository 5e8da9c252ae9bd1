"""Training of the visibility head alone, over an encoder that stays as it is (ours).

The images are generated, so that the true body is known, also where something hides it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpmpp_core.config import Config
from dpmpp_core.losses.patches import patch_visibility
from dpmpp_core.models.reid import ReidModel, start_clip
from dpmpp_core.models.visibility import VisibilityHead
from dpmpp_core.tasks.schedule import parameter_group, warmup_cosine
from dpmpp_core.tasks.task import Task


class HeadTask(Task):
    """Binary cross entropy of the patches' visibility.

    Args:
        config: the run's configuration.
        steps_per_epoch: length of the step plan.
    """

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        super().__init__(config, config.head.epochs, steps_per_epoch)
        with torch.random.fork_rng(devices=[]):
            clip = start_clip(config)
            torch.manual_seed(config.seed)
            model = ReidModel(config.model, config.data, clip)
        self.encoder = model.encoder.eval().requires_grad_(False)
        assert model.visibility is not None
        self.head: VisibilityHead = model.visibility

    def forward(
        self, batch: Mapping[str, Tensor], phase: str = "joint"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute one step's loss.

        Args:
            batch: `images` uint8 [B, H, W, 3] with `visible`, `occluded` and `foreign` bool
                [B, gh, gw]; `covered` and `covered_visible`, ..., likewise.
            phase: there is one.
        """
        images = torch.cat([batch["images"], batch["covered"]])
        visible, occluded, foreign = (
            torch.cat([batch[name], batch[f"covered_{name}"]])
            for name in ("visible", "occluded", "foreign")
        )
        with self.autocast():
            with torch.no_grad():
                taps = self.encoder.encode_early(self.normalise(images))
            predicted = self.head(taps)
        assert predicted.occluded is not None
        body = visible | occluded
        right = (predicted.occluded > 0) == occluded
        loss = patch_visibility(predicted.visible, predicted.occluded, visible, occluded, foreign)
        report = {"accuracy_on_body": (right & body).sum() / body.sum()}
        return {"patches": loss}, report

    def optimiser(self) -> torch.optim.Optimizer:
        """See `Task`."""
        section = self.config.head
        groups = parameter_group(
            self.head.named_parameters(), section.lr, 1.0, section.weight_decay
        )
        return torch.optim.AdamW(groups, fused=True)

    def lr_factor(self, step: int) -> float:
        """See `Task`."""
        return warmup_cosine(step / self.steps_per_epoch, 1, self.epochs, 0.001)

    def trained_state(self) -> dict[str, Tensor]:
        """See `Task`."""
        return {name: tensor.detach() for name, tensor in self.head.state_dict().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Task`."""
        self.head.load_state_dict(dict(state))
