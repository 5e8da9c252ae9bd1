"""Stage 2: encoder, mask generator and prototypes under the dynamic masked metric (DPM++)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpmpp_core.config import Config
from dpmpp_core.losses.arcface import arcface_logits
from dpmpp_core.losses.contrast import prototype_contrast
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.losses.heads import head_diversity
from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.models.clip import unit_text
from dpmpp_core.models.prototypes import Prototypes
from dpmpp_core.models.reid import ReidModel, features_of, start_clip
from dpmpp_core.tasks.distributed import gather
from dpmpp_core.tasks.schedule import parameter_group, warmup_cosine, warmup_steps


class MetricTask(nn.Module):
    """All losses of stage 2 in one pass (the `joint` schedule).

    Args:
        config: the run's configuration.
        texts: float32 [C, P], text prototypes of stage 1; [C, 0] for a backbone without text,
            whose losses in the `joint` space and with text are left out.
        scale: factor on image-text products, from stage 1.
        steps_per_epoch: length of the step plan.
    """

    texts: Tensor

    def __init__(self, config: Config, texts: Tensor, scale: float, steps_per_epoch: int) -> None:
        super().__init__()
        self.config, self.scale, self.steps_per_epoch = config, scale, steps_per_epoch
        with torch.random.fork_rng():
            clip = start_clip(config)
            torch.manual_seed(config.seed)
            self.model = ReidModel(config.model, config.data, clip)
            self.prototypes = Prototypes(len(texts), self.model.spaces)
        if "joint" in self.model.spaces:
            self.prototypes.init_from_text("joint", texts)
        self.register_buffer("texts", texts.float())

    @property
    def epochs(self) -> int:
        return self.config.metric.epochs

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step's losses.

        Args:
            batch: `images` uint8 [B, H, W, 3]; `labels` int64 [B]; `donor_labels` int64 [B], the
                class of the person whose scene hides the sample, -1 = none.

        Returns:
            weighted losses, and the mask figures and accuracy.
        """
        weights = self.config.metric.loss
        images = self._normalise(batch["images"])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16(images.device)):
            encoded, masks = self.model(images)
        block11 = gather(encoded.block11.float())
        features = {name: gather(f) for name, f in features_of(encoded).items()}
        masks = {name: gather(mask) for name, mask in masks.items()}
        labels, donors = gather(batch["labels"]), gather(batch["donor_labels"])

        losses: dict[str, Tensor] = {}
        if encoded.heads is not None:
            losses["heads"] = weights.heads * head_diversity(encoded.heads)
        report: dict[str, Tensor] = {}
        margin = weights.triplet_margin
        triplet = batch_hard_triplet(block11, labels, margin, donors)
        for name, feature in features.items():
            triplet = triplet + batch_hard_triplet(feature, labels, margin, donors)
            plain, masked, correct = self._identity(name, feature, masks[name], labels, donors)
            losses[f"identity_{name}"] = weights.identity * plain
            losses[f"masked_{name}"] = weights.masked * masked
            report[f"accuracy_{name}"] = correct
            report |= {f"mask_{name}_{key}": v for key, v in mask_figures(masks[name]).items()}
        losses["triplet"] = weights.triplet * triplet
        if "joint" in features:
            losses["text"] = weights.text * self._text(features["joint"], labels, donors)
            losses["text_transfer"] = weights.text_transfer * self._text_transfer(labels)
        return losses, report

    def _identity(
        self, space: str, features: Tensor, masks: Tensor, labels: Tensor, donors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.config.metric.loss
        necked = self.model.necks[space](features)
        plain = self.prototypes.plain(space, necked)
        cosine = self.prototypes.masked(space, necked, masks)
        arc = arcface_logits(cosine, labels, weights.arcface_scale, weights.arcface_margin)
        correct = (cosine.detach().argmax(dim=1) == labels).float().mean()
        return (
            cross_entropy(plain, labels, weights.label_smoothing, donors),
            cross_entropy(arc, labels, 0.0, donors),
            correct,
        )

    def _text(self, joint: Tensor, labels: Tensor, donors: Tensor) -> Tensor:
        if unit_text(self.config.model):
            joint = nn.functional.normalize(joint, dim=1)
        logits = self.scale * joint @ self.texts.T
        return cross_entropy(logits, labels, self.config.metric.loss.label_smoothing, donors)

    def _text_transfer(self, labels: Tensor) -> Tensor:
        """Prototypes of the batch's identities against their texts (ours).

        Those of the visual space too, where a linear projection leads from there to the texts.
        """
        classes = labels.unique()
        texts = self.texts[classes]
        temperature = self.config.metric.loss.transfer_temperature
        weight = self.prototypes.weight
        loss = prototype_contrast(weight["joint"][classes], texts, temperature)
        projected = self.model.encoder.project(weight["visual"][classes])
        if projected is not None:
            loss = loss + prototype_contrast(projected, texts, temperature)
        return loss

    def _normalise(self, images: Tensor) -> Tensor:
        data = self.config.data
        mean = torch.tensor(data.mean, device=images.device) * 255
        std = torch.tensor(data.std, device=images.device) * 255
        return ((images - mean) / std).permute(0, 3, 1, 2).contiguous()

    def _bf16(self, device: torch.device) -> bool:
        precision = self.config.metric.precision
        return precision == "bf16" or (precision == "auto" and computes_bf16(device))

    def optimiser(self) -> torch.optim.Optimizer:
        section = self.config.metric
        factor, decay = section.bias_lr_factor, section.weight_decay
        new = [
            (name, parameter)
            for name, parameter in self.named_parameters()
            if not name.startswith("model.encoder.")
        ]
        encoder = self.model.encoder.named_parameters()
        groups = parameter_group(encoder, section.encoder_lr, factor, decay)
        groups += parameter_group(new, section.lr, factor, decay)
        if section.optimiser == "sgd":
            return torch.optim.SGD(groups, momentum=0.9, fused=True)
        return torch.optim.Adam(groups, fused=True)

    def lr_factor(self, step: int) -> float:
        section = self.config.metric
        epoch = step / self.steps_per_epoch
        if section.schedule == "cosine":
            return warmup_cosine(epoch, section.warmup_epochs, section.epochs, 0.01)
        return warmup_steps(epoch, section.warmup_epochs, section.milestones, section.gamma)

    def clip_gradients(self) -> None:
        limit = self.config.metric.mask_grad_clip
        nn.utils.clip_grad_norm_(self.model.mask_generator.parameters(), limit)

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(state))


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic, so that autocast gains time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)


@torch.no_grad()
def mask_figures(masks: Tensor) -> dict[str, Tensor]:
    """Is the mask alive, and does it depend on the picture?

    Args:
        masks: float [B, D] in (0, 1).

    Returns:
        `mean`; `std_samples`, the mean over dimensions of the std over samples (0 = one static
        mask for all); `std_channels`, the std over dimensions of the mean mask; `participation`
        (sum m)^2 / (D sum m^2), 1 = all dimensions kept alike.
    """
    square_sum = masks.square().sum(dim=1)
    return {
        "mean": masks.mean(),
        "std_samples": masks.std(dim=0).mean(),
        "std_channels": masks.mean(dim=0).std(),
        "participation": (masks.sum(dim=1).square() / (masks.shape[1] * square_sum)).mean(),
    }
