"""Stage 2: encoder, mask generator and prototypes under the dynamic masked metric (DPM++)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dpmpp_core.config import Config
from dpmpp_core.data.steps import NO_OCCLUSION
from dpmpp_core.losses.arcface import arcface_logits
from dpmpp_core.losses.contrast import prototype_contrast
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.losses.heads import head_diversity
from dpmpp_core.losses.patches import patch_visibility, resample
from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.losses.visibility import visibility_likelihood
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.models.clip import grid_size
from dpmpp_core.models.distributed import gather, gather_together
from dpmpp_core.models.encoder import Encoded
from dpmpp_core.models.prototypes import Prototypes
from dpmpp_core.models.reid import Reading, ReidModel, features_of, start_clip
from dpmpp_core.models.visibility import Visibility
from dpmpp_core.models.weights import find_head_lr, unit_text
from dpmpp_core.retrieval.masks import DEAD_MASK
from dpmpp_core.tasks.first_epoch import Window, first_epoch_windows, outside_first_epoch
from dpmpp_core.tasks.schedule import warmup_cosine, warmup_steps
from dpmpp_core.tasks.task import Task


class MetricTask(Task):
    """All losses of stage 2.

    With `metric.update: joint` a step is one pass that updates everything. With `alternating` (DPM)
    it is two over the same batch: `model` updates all but the mask generator, then `mask` the
    generator alone, by the losses that depend on its masks.

    Args:
        config: the run's configuration.
        texts: float32 [C, P], text prototypes of stage 1; [C, 0] for a backbone without text,
            whose losses in the `joint` space and with text are left out.
        scale: factor on image-text products, from stage 1.
        steps_per_epoch: length of the step plan.
    """

    texts: Tensor

    def __init__(self, config: Config, texts: Tensor, scale: float, steps_per_epoch: int) -> None:
        section = config.metric
        super().__init__(config, section.epochs, steps_per_epoch)
        self.scale = scale
        with torch.random.fork_rng(devices=[]):
            clip = start_clip(config)
            torch.manual_seed(config.seed)
            self.model = ReidModel(config.model, config.data, clip)
            self.model.start_head()
            self.prototypes = Prototypes(len(texts), self.model.spaces)
        if "joint" in self.model.spaces and section.loss.text_transfer:
            self.prototypes.init_from_text("joint", texts)
        self._head_lr = find_head_lr(config)
        self.register_buffer("texts", texts.float())
        self._grid = grid_size(config.model, config.data.height, config.data.width)
        for name, parameter in self.named_parameters():
            if self._rate(name) == 0:
                parameter.requires_grad_(False)

    @property
    def phases(self) -> tuple[str, ...]:
        """See `Task`."""
        return ("model", "mask") if self.config.metric.update == "alternating" else ("joint",)

    @property
    def updates_all(self) -> bool:
        """See `Task`."""
        return self.phases == ("joint",) and self.config.metric.loss.masked > 0

    @property
    def accumulate(self) -> int:
        """See `Task`."""
        return self.config.metric.accumulate

    def compile_parts(self) -> None:
        """Compile the encoder in place, if `metric.compile` is set."""
        if self.config.metric.compile:
            self.model.encoder.compile()

    def forward(
        self, batch: Mapping[str, Tensor], phase: str = "joint"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the losses of one pass, except those of weight 0.

        Args:
            batch: `images` uint8 [B, H, W, 3]; `labels` int64 [B]; `donor_labels` int64 [B], the
                class of the person whose scene hides the sample, negative = none; with a visibility
                loss also `twins`, the images without that scene (read where there is a donor); with
                a visibility head that learns also `visible`, `occluded` and `foreign` bool
                [B, gh, gw], and `covered`, `covered_visible`, ..., the same of images behind
                synthetic occluders; with an attention mask also `masked` bool [B, gh, gw] and
                `known` bool [B], the samples whose attention mask it is.
            phase: one of `phases`.

        Returns:
            weighted losses, and the mask figures and accuracy.
        """
        ids = gather_together({name: batch[name] for name in ("labels", "donor_labels")})
        labels, donors = ids["labels"], ids["donor_labels"]
        ignored = donors if self.config.metric.class_ignoring else None
        frozen = torch.no_grad() if phase == "mask" else nullcontext()
        learns_head = bool(self._head_lr) and phase != "mask"
        with self.autocast():  # one context for all passes, so that weights are cast once
            with frozen:
                encoded, visibility = self._encode(batch)
            reading = self.model.read(encoded, visibility)
            covered = None
            if visibility is not None and learns_head:
                covered = self._encode_covered(batch)
        block11, features, masks = self._gather_readings(reading)
        with frozen:
            necked = {name: self.model.necks[name](feature) for name, feature in features.items()}
        report = {
            f"mask_{name}_{key}": figure
            for name, mask in masks.items()
            if name in self.model.masked_spaces
            for key, figure in compute_mask_figures(mask).items()
        }

        weights = self.config.metric.loss
        losses: dict[str, Tensor] = {}
        if weights.masked:
            cosines = [self.prototypes.masked(n, x, masks[n]) for n, x in necked.items()]
            stacked = torch.stack(cosines)
            arc = arcface_logits(stacked, labels, weights.arcface_scale, weights.arcface_margin)
            values = weights.masked * cross_entropy(arc, labels, 0.0, ignored)
            losses |= _named("masked_", necked, values)
            report |= _named("accuracy_", necked, _accuracy(stacked, labels))
        if weights.visibility and phase != "model":
            for name, error in self._occlusion_errors(batch, reading.features).items():
                likelihood = visibility_likelihood(
                    masks[name], gather(error), donors != NO_OCCLUSION
                )
                losses[f"visibility_{name}"] = weights.visibility * likelihood
        if phase == "mask":
            return losses, report
        if visibility is not None and covered is not None:
            losses["patches"] = self._patches(batch, visibility, covered)
        if weights.identity:
            plain = [n for n in necked if n != BANDS]
            stacked = torch.stack([self.prototypes.plain(n, necked[n]) for n in plain])
            values = cross_entropy(stacked, labels, weights.label_smoothing, ignored)
            losses |= _named("identity_", plain, weights.identity * values)
            if not weights.masked:  # else it is that of the masked cosines
                report |= _named("accuracy_", plain, _accuracy(stacked, labels))
        if weights.triplet:
            compared = [block11, *(x for name, x in features.items() if name != BANDS)]
            triplet = batch_hard_triplet(compared, labels, weights.triplet_margin, ignored)
            losses["triplet"] = weights.triplet * triplet
        if weights.text and "joint" in features:
            losses["text"] = weights.text * self._text(features["joint"], labels, ignored)
        if weights.text_transfer and "joint" in features:
            losses["text_transfer"] = weights.text_transfer * self._text_transfer(labels)
        if weights.heads and encoded.heads is not None:
            losses["heads"] = weights.heads * head_diversity(encoded.heads)
        return losses, report

    def _encode(self, batch: Mapping[str, Tensor]) -> tuple[Encoded, Visibility | None]:
        """Encode the batch; some samples by the true attention mask, some without one."""
        images = self.normalise(batch["images"])
        if self.config.model.attention_mask_depth is None:
            return self.model.encode(images)
        masked = resample(batch["masked"], self._grid) > 0.5
        return self.model.encode(images, masked, batch["known"])

    def _encode_covered(self, batch: Mapping[str, Tensor]) -> Visibility:
        """Predict visibility behind synthetic occluders; the encoder does not learn from it."""
        with torch.no_grad():
            taps = self.model.encoder.encode_early(self.normalise(batch["covered"]))
        assert self.model.visibility is not None
        return self.model.visibility(taps)

    def _gather_readings(
        self, reading: Reading
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return `block11`, features and masks of the whole batch, exchanged together.

        Masks that are 0.5 everywhere are not exchanged.
        """
        shown = {n: m for n, m in reading.masks.items() if n in self.model.masked_spaces}
        local = {"block11": reading.encoded.block11.float()}
        local |= {f"feature {n}": x for n, x in reading.features.items()}
        whole = gather_together(local | {f"mask {n}": m for n, m in shown.items()})
        features = {n: whole[f"feature {n}"] for n in reading.features}
        size = len(whole["block11"])
        masks = {
            n: whole[f"mask {n}"] if n in shown else mask[:1].expand(size, -1)
            for n, mask in reading.masks.items()
        }
        return whole["block11"], features, masks

    def _patches(
        self, batch: Mapping[str, Tensor], visibility: Visibility, covered: Visibility
    ) -> Tensor:
        """Compute the head's loss on the batch and on images behind synthetic occluders."""
        losses = [
            patch_visibility(
                predicted.visible,
                predicted.occluded,
                *(batch[f"{prefix}{name}"] for name in ("visible", "occluded", "foreign")),
            )
            for prefix, predicted in (("", visibility), ("covered_", covered))
        ]
        sizes = len(batch["images"]), len(batch["covered"])
        return (sizes[0] * losses[0] + sizes[1] * losses[1]) / sum(sizes)

    def _text(self, joint: Tensor, labels: Tensor, ignored: Tensor | None) -> Tensor:
        if unit_text(self.config.model):
            joint = nn.functional.normalize(joint, dim=1)
        logits = self.scale * joint @ self.texts.T
        return cross_entropy(logits, labels, self.config.metric.loss.label_smoothing, ignored)

    def _text_transfer(self, labels: Tensor) -> Tensor:
        """Contrast prototypes of the batch's identities with their texts (ours).

        Those of the visual space too, if it has a linear projection to the texts.
        """
        texts, weight = self.texts[labels], self.prototypes.weight
        temperature = self.config.metric.loss.transfer_temperature
        rows = [weight["joint"][labels]]
        projected = self.model.encoder.project(weight["visual"][labels])
        if projected is not None:
            rows.append(projected)
        return prototype_contrast(torch.stack(rows), texts, temperature, labels).sum()

    @torch.no_grad()
    def _occlusion_errors(
        self, batch: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return squared differences of unit features after the neck, image - twin; 0 if not mixed.

        Only of the encoder's spaces, as bands learn visibility from the patches.
        """
        rows = (batch["donor_labels"] != NO_OCCLUSION).nonzero()[:, 0]
        errors = {name: torch.zeros_like(features[name]) for name in self.model.encoder.spaces}
        if len(rows) == 0:
            return errors
        with self.autocast():
            twins = self.model.encoder(self.normalise(batch["twins"][rows]))
        for name, twin in features_of(twins).items():
            neck = self.model.necks[name]
            pair = (_normalized_after_neck(neck, x) for x in (features[name][rows], twin))
            occluded, clean = pair
            errors[name][rows] = (occluded - clean).square()
        return errors

    def train(self, mode: bool = True) -> MetricTask:
        """Set the mode; a head that does not learn keeps its statistics."""
        super().train(mode)
        if self._head_lr == 0 and self.model.visibility is not None:
            self.model.visibility.eval()
        return self

    def optimiser(self) -> torch.optim.Optimizer:
        """See `Task`."""
        section = self.config.metric
        groups = self.groups_by_rate(self._rate, section.bias_lr_factor, section.weight_decay)
        if section.optimiser == "sgd":
            return torch.optim.SGD(groups, momentum=0.9, fused=True)
        return torch.optim.Adam(groups, fused=True)

    def _rate(self, name: str) -> float:
        section = self.config.metric
        if name.startswith("model.visibility."):
            return self._head_lr
        if name.startswith("model.encoder."):
            return section.encoder_lr
        return section.lr

    def lr_factor(self, step: int) -> float:
        """See `Task`."""
        section = self.config.metric
        epoch = step / self.steps_per_epoch
        part = step * len(section.rates) // (section.epochs * self.steps_per_epoch)
        factor = section.rates[min(part, len(section.rates) - 1)]
        if section.schedule == "cosine":
            return factor * warmup_cosine(epoch, section.warmup_epochs, section.epochs, 0.01)
        milestones: tuple[float, ...] | None = section.milestones
        if milestones is None:
            milestones = section.epochs / 2, section.epochs * 5 / 6
        return factor * warmup_steps(epoch, section.warmup_epochs, milestones, section.gamma)

    def filter_gradients(self, phase: str) -> None:
        """Drop the gradients that `phase` does not update; clip those of the mask generator."""
        if phase != "joint":
            for name, parameter in self.named_parameters():
                if name.startswith("model.mask_generator.") != (phase == "mask"):
                    parameter.grad = None
        generator = list(self.model.mask_generator.parameters())
        if generator:
            nn.utils.clip_grad_norm_(generator, self.config.metric.mask_grad_clip)

    def first_epoch(self) -> dict[str, Window]:
        """Compute the windows of the losses of the first epoch, see `first_epoch_windows`."""
        section = self.config.metric
        rates = [section.lr * self.lr_factor(step) for step in range(self.steps_per_epoch)]
        return first_epoch_windows(section, len(self.texts), self.model.spaces, rates)

    def alarms(self, epoch: int, figures: Mapping[str, float]) -> dict[str, str]:
        """See `Task`.

        After the first epoch: losses outside their windows. After warm-up and half of the training:
        masks that differ less than `DEAD_MASK` between pictures.
        """
        if epoch == 1:
            return {
                f"first_epoch_{name}": sentence
                for name, sentence in outside_first_epoch(self.first_epoch(), figures).items()
            }
        section = self.config.metric
        trained = section.loss.masked or section.loss.visibility
        if not trained or epoch <= max(section.warmup_epochs, section.epochs / 2):
            return {}
        return {
            f"dead_mask_{space}": f"dead mask in the {space} space: std over pictures {std:.4f} in "
            f"epoch {epoch} of {section.epochs} (alive: {DEAD_MASK} or more); it weights all "
            "queries alike, so another query's mask would do as well"
            for space in self.model.masked_spaces
            if (std := figures[f"mask_{space}_std_samples"]) < DEAD_MASK
        }


def _named(prefix: str, names: Iterable[str], values: Tensor) -> dict[str, Tensor]:
    """Return the values [N], one for each name, by prefixed name."""
    return dict(zip((f"{prefix}{name}" for name in names), values.unbind(), strict=True))


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of right rows, [...], of logits [..., B, C]."""
    return (logits.detach().argmax(dim=-1) == labels).float().mean(dim=-1)


def _normalized_after_neck(neck: nn.Module, features: Tensor) -> Tensor:
    """Return unit features after a batch-norm neck with its running statistics, as in retrieval.

    The neck itself is not changed, even in training.
    """
    assert isinstance(neck, nn.BatchNorm1d)
    scaled = nn.functional.batch_norm(
        features, neck.running_mean, neck.running_var, neck.weight, neck.bias, eps=neck.eps
    )
    return nn.functional.normalize(scaled, dim=1)


@torch.no_grad()
def compute_mask_figures(masks: Tensor) -> dict[str, Tensor]:
    """Measure how masks float [B, D] in (0, 1) vary.

    Returns:
        `mean`; `std_samples`, the mean over dimensions of the std over samples (0 = one static
        mask for all); `std_channels`, the std over dimensions of the mean mask; `participation`
        (sum m)^2 / (D sum m^2), 1 = all dimensions have equal weight.
    """
    square_sum = masks.square().sum(dim=1)
    return {
        "mean": masks.mean(),
        "std_samples": masks.std(dim=0).mean(),
        "std_channels": masks.mean(dim=0).std(),
        "participation": (masks.sum(dim=1).square() / (masks.shape[1] * square_sum)).mean(),
    }
