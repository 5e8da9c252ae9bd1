"""The sections of the trainings, from person masks to losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from dpmpp_core.config.section import NonNegative, Positive, Probability, Section, TwoOrMore, Whole


class SaliencyConfig(Section):
    """Stage 0: person masks, one bitmask of patches per image (SPT)."""

    target_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="share of patches called person (SPT)"
    )
    provider: Literal["sps", "attention", "spectral", "given"] = Field(
        "sps",
        description="sps: learned from identities (SPT); attention: of the starting encoder; "
        "spectral: no model; given: annotations.parquet or masks/ in the data folder",
    )
    identities: TwoOrMore = Field(16, description="identities per batch; sps")
    images: TwoOrMore = Field(4, description="images per identity; sps")
    epochs: PositiveInt = Field(20, description="passes over the training data; sps")
    encoder_lr: Positive = Field(5e-6, description="learning rate of the encoder; sps")
    lr: Positive = Field(1e-4, description="learning rate of the mask head and the classifier; sps")
    area_weight: NonNegative = Field(
        50.0, description="weight of the share's distance to target_ratio; sps"
    )
    penalty_weight: NonNegative = Field(
        0.1, description="weight of identity in the background, summed over the batch; sps"
    )
    triplet_weight: NonNegative = Field(1.0, description="weight of the triplet loss; sps")


class PromptsConfig(Section):
    """Stage 1: text prototypes from learnable prompts (CLIP-ReID)."""

    epochs: PositiveInt = Field(120, description="passes over the training images")
    batch: PositiveInt = Field(64, description="images per step")
    lr: Positive = Field(3.5e-4, description="highest learning rate")
    min_lr: NonNegative = Field(1e-6, description="learning rate at the end of the cosine")
    weight_decay: NonNegative = Field(1e-4, description="weight decay of the optimiser")
    warmup_epochs: Whole = Field(5, description="first epochs, in which the rate rises")


class AugmentConfig(Section):
    """Augmentation of images; the saliency mask gets the same geometry."""

    flip: Probability = Field(0.5, description="share of images mirrored left to right")
    pad: Whole = Field(10, description="pixels added around, then cropped")
    erase: Probability = Field(
        0.0,
        description="random erasing, only of images not mixed; "
        "0 = off (no measurable gain in the ablation)",
    )
    camera: Probability = Field(
        0.0, description="strength of colour and blur jitter (ours); 0 = off"
    )


class OcclusionConfig(Section):
    """Saliency-guided patch transfer and its pairing (SPT; bounds are ours).

    By default pairs are drawn at random: selecting them by `min_oiou`, the bounds or `top_share`
    had no measurable gain. The published values are in the recipe `published`.
    """

    probability: Probability = Field(
        0.5, description="share of the training images that are occluded; 0 = none"
    )
    min_oiou: Probability = Field(0.0, description="least OIoU of a pair; SPT has 0.7")
    min_ratio: Probability = Field(0.0, description="least share of the person hidden")
    max_ratio: Probability = Field(1.0, description="largest share of the person hidden")
    min_donor: Probability = Field(0.05, description="least share of patches in the donor's mask")
    top_share: Probability = Field(1.0, description="draw from this best share of candidates")
    rolling: bool = Field(False, description="shift the donor's mask; SPT does")
    bank: Whole = Field(64, description="donors per step beyond the batch, of all images (ours)")
    backgrounds: str | None = Field(
        None, description="folder or s3://bucket/prefix of pictures without people, for the bank"
    )
    background_share: Probability = Field(
        0.5, description="share of the bank that shows `backgrounds`; 0 where there are none"
    )

    @model_validator(mode="after")
    def _range(self) -> OcclusionConfig:
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio {self.min_ratio} is above max_ratio {self.max_ratio}")
        if self.backgrounds and not self.bank:
            raise ValueError("backgrounds are donors of the bank, which is empty: raise bank")
        return self


class LossConfig(Section):
    """Weights of the stage-2 losses (DPM, CLIP-ReID; text_transfer and heads are ours)."""

    identity: NonNegative = Field(0.25, description="plain cross entropy, each space")
    masked: NonNegative = Field(0.25, description="ArcFace on the masked metric, each space")
    triplet: NonNegative = Field(1.0, description="batch-hard triplets, each space")
    text: NonNegative = Field(1.0, description="image-to-text cross entropy")
    text_transfer: NonNegative = Field(0.1, description="prototype-to-text contrast")
    heads: NonNegative = Field(
        0.0,
        description="diversity of the last block's heads; "
        "0 = off (no measurable gain in the ablation)",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of the target that all identities get; of `identity` and `text`"
    )
    arcface_scale: Positive = Field(30.0, description="factor on the cosines of `masked`")
    arcface_margin: Annotated[float, Field(ge=0, lt=1.57)] = Field(
        0.3, description="angle in radians that `masked` demands beyond the others"
    )
    triplet_margin: NonNegative | None = Field(
        0.3, description="distance that `triplet` demands; null = soft margin (softplus)"
    )
    transfer_temperature: Positive = Field(
        0.05, description="temperature of the contrast `text_transfer`"
    )
    visibility: NonNegative = Field(
        0.0, description="likelihood of the occlusion's errors under the mask, each space (ours)"
    )


class PretrainConfig(Section):
    """A small CLIP of our own, from generated people and captions (ours)."""

    identities: TwoOrMore = Field(64, description="identities per batch (P)")
    images: TwoOrMore = Field(4, description="images per identity (K)")
    epochs: PositiveInt = Field(12, description="passes over the generated people")
    lr: Positive = Field(5e-4, description="highest learning rate")
    weight_decay: NonNegative = Field(0.05, description="weight decay of the optimiser")
    warmup_epochs: Whole = Field(1, description="first epochs, in which the rate rises")
    kept_patches: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="share of patches that the encoder gets (FLIP)"
    )
    whole_epochs: Whole = Field(1, description="last epochs, with all patches")
    temperature: Positive = Field(0.1, description="temperature of the contrast between images")
    text: NonNegative = Field(1.0, description="weight of the contrast with captions")


class HeadConfig(Section):
    """The visibility head alone, on generated people whose true masks are known (ours)."""

    identities: TwoOrMore = Field(32, description="identities per batch (P)")
    images: TwoOrMore = Field(4, description="images per identity (K)")
    epochs: PositiveInt = Field(12, description="passes over the generated people")
    lr: Positive = Field(2e-3, description="highest learning rate")
    weight_decay: NonNegative = Field(1e-3, description="weight decay of the optimiser")


class MetricConfig(Section):
    """Stage 2: encoder, mask generator and prototypes together."""

    identities: TwoOrMore = Field(16, description="identities per batch (P)")
    images: TwoOrMore = Field(4, description="images per identity (K)")
    sampling: Literal["identities", "images"] = Field(
        "identities",
        description="identities: each equally often (ours); images: in proportion to its images, "
        "so that each image comes about once per epoch (DPM, CLIP-ReID)",
    )
    epochs: PositiveInt = Field(60, description="passes over the training data")
    encoder_lr: Positive = Field(5e-6, description="learning rate of the encoder")
    lr: Positive = Field(1e-4, description="learning rate of everything that is new")
    head_lr: NonNegative | None = Field(
        None,
        description="learning rate of the visibility head; 0 = it stays as it starts; null = "
        "lr / 10 if it starts from a file, else lr",
    )
    optimiser: Literal["adam", "sgd"] = Field(
        "adam", description="adam, or sgd with a momentum of 0.9"
    )
    bias_lr_factor: Positive = Field(2.0, description="factor on the learning rate of biases")
    weight_decay: NonNegative = Field(1e-4, description="weight decay of the optimiser")
    warmup_epochs: Whole = Field(10, description="first epochs, in which the rates rise")
    schedule: Literal["step", "cosine"] = Field(
        "step", description="step: the rates fall at `milestones`; cosine: they fall to the end"
    )
    milestones: tuple[PositiveInt, ...] | None = Field(
        None,
        description="epochs at which `step` lowers the rates; null = after 1/2 and 5/6 of all, as "
        "30 and 50 of 60",
    )
    gamma: Positive = Field(0.1, description="factor on the rates at each milestone")
    rates: tuple[Positive, ...] = Field(
        (1.0,),
        min_length=1,
        description="factors on all learning rates in equal parts of the training, one part after "
        "the other; a result of `dpmpp tune --scheduler pbt` (ours)",
    )
    mask_grad_clip: Positive = Field(1.0, description="largest gradient norm of the mask generator")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto = bf16 on GPUs, and where this machine's CPU computes it; else fp32, "
        "which takes several times as long on a GPU",
    )
    accumulate: PositiveInt = Field(
        1,
        description="parts of whole identities in which a worker computes its batch, one after the "
        "other, to save memory; losses, hardest pairs and batch norm use one part each",
    )
    true_masks: Probability = Field(
        0.3, description="share of samples whose truly occluded patches are masked from attention"
    )
    predicted_masks: Probability = Field(
        0.4, description="share of samples with the predicted mask; the rest has none"
    )
    compile: bool = Field(False, description="torch.compile the encoder")
    loss: LossConfig = LossConfig()
    class_ignoring: bool = Field(
        False,
        description="a donor's identity takes no part in the losses of the sample it hides (SPT); "
        "off, as it has no measurable gain",
    )
    update: Literal["joint", "alternating"] = Field(
        "joint",
        description="joint (ours): one pass per step; alternating (DPM): a second for the mask",
    )

    @model_validator(mode="after")
    def _learns(self) -> MetricConfig:
        loss = self.loss
        of_masks = loss.masked or loss.visibility
        others = loss.identity or loss.triplet or loss.text
        if not (loss.masked or others):
            raise ValueError("loss: identity, masked, triplet or text needs a weight above 0")
        if self.true_masks + self.predicted_masks > 1 + 1e-9:
            raise ValueError("true_masks and predicted_masks are shares of all samples: 1 at most")
        late = [m for m in self.milestones or () if m >= self.epochs]
        if self.schedule == "step" and late:
            raise ValueError(
                f"milestones: epoch {late[0]} never comes, as there are {self.epochs}: leave "
                "milestones out (null), or name earlier ones"
            )
        if self.update == "alternating" and not of_masks:
            raise ValueError("update alternating needs loss.masked or loss.visibility above 0")
        return self
