"""What can be configured: one section a concern, typed and frozen.

Defaults are the published values of the production model (sources: DPM, ACM MM 2022; CLIP-ReID,
AAAI 2023; SPT, AAAI 2024) unless marked `ours`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
Label = Annotated[str, Field(pattern=r"^[^=\s]+=[^=\s]+$", description="key=value")]
Layout = Literal["auto", "market1501", "msmt17", "occluded_reid", "p_duke", "partial_reid"]


LAYOUTS: tuple[str, ...] = get_args(Layout)


LARGEST = 2**31 - 1  # of whole numbers: seeds of every library and counts of anything fit


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _whole_numbers_fit(self) -> Section:
        for name, value in self:
            if isinstance(value, int) and value > LARGEST:
                raise ValueError(f"{name} {value} is larger than {LARGEST}")
        return self


class DemoConfig(Section):
    """The generated demo data set (used when no data folder is given)."""

    train_identities: Annotated[int, Field(ge=2)] = 120
    test_identities: Annotated[int, Field(ge=2)] = 60
    cameras: Annotated[int, Field(ge=2, le=99)] = 6
    train_images: PositiveInt = Field(8, description="images of each training identity")
    gallery_images: PositiveInt = Field(4, description="gallery images of each test identity")
    query_images: PositiveInt = Field(2, description="queries of each test identity, in each set")
    look_alikes: Probability = Field(
        0.75, description="share of the groups of four in which all look alike"
    )
    one_garment: bool = Field(
        False, description="look-alikes differ in one piece that can be seen, and in nothing else"
    )
    unseen: bool = Field(
        False,
        description="occluders and cameras of the test are never seen in training; every occluded "
        "query has a twin of the same name in query_holistic, the same photograph without occluder",
    )
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _cameras(self) -> DemoConfig:
        if self.unseen and self.cameras < 4:
            raise ValueError(
                f"unseen needs 4 cameras or more: two to train, one for the gallery and one for "
                f"queries; cameras is {self.cameras}"
            )
        return self


class DataConfig(Section):
    """How a data folder is read."""

    layout: Layout = "auto"
    occluded_queries: bool = Field(
        False, description="the queries of a market1501 folder are occluded, as in Occluded-Duke"
    )
    height: PositiveInt = Field(256, description="pixels")
    width: PositiveInt = Field(128, description="pixels")
    mean: Triple = Field((0.5, 0.5, 0.5), description="of RGB in [0, 1] (CLIP-ReID)")
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    pack: bool | None = Field(
        None,
        description="copy the training images into few large files first; null = if they are on S3",
    )
    demo: DemoConfig = DemoConfig()


class ModelConfig(Section):
    """The image encoder, the mask generator and the prompts."""

    backbone: str = Field(
        "ViT-B-16",
        description="an open_clip model with a ViT image tower, or timm/NAME (no text); "
        "timm/NAME.TAG sets `pretrained` too",
    )
    pretrained: str | None = Field(
        "openai", description="open_clip or timm tag; null = random weights"
    )
    checkpoint: str | None = Field(
        None, description="local file of weights; `pretrained` still decides the activation"
    )
    stride: PositiveInt | None = Field(None, description="patch stride; null = the patch size")
    taps: tuple[PositiveInt, ...] = Field(
        (2, 4, 10, 12), min_length=1, description="blocks the mask reads (DPM)"
    )
    mask_generator: Literal["light", "full", "none"] = Field(
        "none",
        description="masks of the class token's spaces: full is DPM's, light a smaller one (ours); "
        "none = 0.5 (they gained nothing, measured)",
    )
    bands: Annotated[int, Field(ge=0)] = Field(
        8,
        description="horizontal bands of the person with a feature and a mask each (ours); 0 = off",
    )
    retrieval_features: Literal["post_bn", "pre_bn"] = Field(
        "post_bn", description="post_bn (ours): the space in which the mask is trained"
    )
    prompt_tokens: PositiveInt = Field(4, description="learnable words an identity (CLIP-ReID)")
    prompt: str = Field("A photo of a {} person.", description="{} = the learnable words")
    normalise_text: bool | None = Field(
        None,
        description="text and images compared as unit vectors at the model's logit scale; null = "
        "unless the weights are OpenAI's (CLIP-ReID)",
    )

    @model_validator(mode="before")
    @classmethod
    def _timm_tag(cls, values: Any) -> Any:
        backbone = values.get("backbone") if isinstance(values, Mapping) else None
        name, dot, tag = str(backbone).partition(".")
        if not (dot and name.startswith("timm/")):
            return values
        random = "pretrained" in values and values["pretrained"] is None
        return {**values, "backbone": name, "pretrained": None if random else tag}


class SaliencyConfig(Section):
    """Stage 0: where the person is, one bitmask of patches an image (SPT)."""

    target_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="share of patches called person (SPT)"
    )
    provider: Literal["sps", "attention", "spectral", "given"] = Field(
        "sps",
        description="sps: learned from identities (SPT); attention: of the starting encoder; "
        "spectral: no model; given: annotations.parquet or masks/ beside the data",
    )
    identities: Annotated[int, Field(ge=2)] = Field(16, description="identities a batch; sps")
    images: Annotated[int, Field(ge=2)] = Field(4, description="images an identity; sps")
    epochs: PositiveInt = Field(20, description="sps")
    encoder_lr: Positive = Field(5e-6, description="sps")
    lr: Positive = Field(1e-4, description="of the mask head and the classifier; sps")
    area_weight: NonNegative = Field(50.0, description="of the share's distance to target_ratio")
    penalty_weight: NonNegative = Field(
        0.1, description="of identity left in the background, summed over the batch"
    )
    triplet_weight: NonNegative = 1.0


class PromptsConfig(Section):
    """Stage 1: text prototypes from learnable prompts (CLIP-ReID)."""

    epochs: PositiveInt = 120
    batch: PositiveInt = 64
    lr: Positive = 3.5e-4
    min_lr: NonNegative = 1e-6
    weight_decay: NonNegative = 1e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 5


class AugmentConfig(Section):
    """Geometric augmentation; the saliency mask rides along."""

    flip: Probability = 0.5
    pad: Annotated[int, Field(ge=0)] = Field(10, description="pixels added around, then cropped")
    erase: Probability = Field(
        0.0, description="random erasing, only of images not mixed; 0 = off (it gained nothing)"
    )
    camera: Probability = Field(
        0.0, description="strength of random colours and sharpness (ours); 0 = off"
    )


class OcclusionConfig(Section):
    """Saliency-guided patch transfer and its pairing (SPT; bounds are ours).

    Pairs are drawn at random unless `min_oiou`, the bounds or `top_share` say otherwise: choosing
    them gained nothing, measured. The published values are in the recipe `published`.
    """

    probability: Probability = 0.5
    min_oiou: Probability = Field(0.0, description="least OIoU of a pair; SPT has 0.7")
    min_ratio: Probability = Field(0.0, description="least share of the person hidden")
    max_ratio: Probability = Field(1.0, description="largest share of the person hidden")
    min_donor: Probability = Field(0.05, description="least share of patches in the donor's mask")
    top_share: Probability = Field(1.0, description="draw from this best share of candidates")
    rolling: bool = Field(False, description="shift the donor's mask; SPT does")
    bank: Annotated[int, Field(ge=0)] = Field(
        64, description="donors a step beyond the batch, from all training images (ours)"
    )
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
    triplet: NonNegative = 1.0
    text: NonNegative = Field(1.0, description="image-to-text cross entropy")
    text_transfer: NonNegative = Field(0.1, description="prototype-to-text contrast")
    heads: NonNegative = Field(
        0.0, description="diversity of the last block's heads; 0 = off (it gained nothing)"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    arcface_scale: Positive = 30.0
    arcface_margin: Annotated[float, Field(ge=0, lt=1.57)] = 0.3
    triplet_margin: NonNegative | None = Field(0.3, description="null = soft margin (softplus)")
    transfer_temperature: Positive = 0.05
    visibility: NonNegative = Field(
        0.0, description="likelihood of the occlusion's errors under the mask, each space (ours)"
    )


class PretrainConfig(Section):
    """A small CLIP of our own, from generated people and captions (ours)."""

    identities: Annotated[int, Field(ge=2)] = Field(64, description="identities a batch (P)")
    images: Annotated[int, Field(ge=2)] = Field(4, description="images an identity (K)")
    epochs: PositiveInt = 12
    lr: Positive = 5e-4
    weight_decay: NonNegative = 0.05
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    kept_patches: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="share of patches that the encoder sees (FLIP)"
    )
    whole_epochs: Annotated[int, Field(ge=0)] = Field(
        1, description="last epochs, in which the encoder sees all patches"
    )
    temperature: Positive = Field(0.1, description="of the contrast between images")
    text: NonNegative = Field(1.0, description="weight of the contrast with captions")


class MetricConfig(Section):
    """Stage 2: encoder, mask generator and prototypes together."""

    identities: Annotated[int, Field(ge=2)] = Field(16, description="identities a batch (P)")
    images: Annotated[int, Field(ge=2)] = Field(4, description="images an identity (K)")
    epochs: PositiveInt = 60
    encoder_lr: Positive = 5e-6
    lr: Positive = Field(1e-4, description="of everything that is new")
    optimiser: Literal["adam", "sgd"] = Field("adam", description="sgd has a momentum of 0.9")
    bias_lr_factor: Positive = 2.0
    weight_decay: NonNegative = 1e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 10
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[PositiveInt, ...] = Field((30, 50), description="epochs; for `step`")
    gamma: Positive = 0.1
    mask_grad_clip: Positive = Field(1.0, description="gradient norm of the mask generator")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto = bf16 on accelerators and CPUs that compute it, else fp32"
    )
    accumulate: PositiveInt = Field(
        1,
        description="parts of whole identities in which a worker takes its batch, one after the "
        "other, to need less memory; losses, hardest pairs and batch norm see one part each",
    )
    compile: bool = Field(False, description="torch.compile the encoder")
    loss: LossConfig = LossConfig()
    class_ignoring: bool = Field(
        False,
        description="a donor's identity takes no part in the losses of who it hides (SPT); off, as "
        "it gained nothing",
    )
    update: Literal["joint", "alternating"] = Field(
        "joint",
        description="joint (ours): one pass a step; alternating (DPM): a second one for the mask",
    )

    @model_validator(mode="after")
    def _learns(self) -> MetricConfig:
        loss = self.loss
        of_masks = loss.masked or loss.visibility
        others = loss.identity or loss.triplet or loss.text
        if not (loss.masked or others):
            raise ValueError("loss: identity, masked, triplet or text needs a weight above 0")
        if self.update == "alternating" and not of_masks:
            raise ValueError("update alternating needs loss.masked or loss.visibility above 0")
        return self


class EvaluationConfig(Section):
    batch: PositiveInt = 64
    robustness: bool = Field(
        False, description="measure clean queries hidden more and more, for the report (ours)"
    )
    shots: tuple[PositiveInt, ...] = Field(
        (),
        description="measure tracklets too: so many queries of one person and camera as one, such "
        "as [1,2,4,8] (ours)",
    )


class ClusterConfig(Section):
    """How much of the machine or cluster is used; not part of a run's identity."""

    train_workers: PositiveInt = 1
    min_train_workers: PositiveInt | None = Field(
        None, description="go on with so few when nodes are lost; null = wait for all"
    )
    data_workers: PositiveInt | None = Field(None, description="null = sized to the cluster")
    train_cpus: PositiveInt | None = Field(None, description="of a train worker; null = sized")
    embed_workers: PositiveInt | None = Field(None, description="with a CPU each; null = sized")
    autoscaled: bool = Field(
        False, description="nodes come when asked for: nothing is sized to those that are there"
    )
    gpu: bool | None = Field(None, description="null = use GPUs where the cluster has them")
    train_nodes: tuple[Label, ...] = Field((), description="labels of the nodes that train")
    data_nodes: tuple[Label, ...] = Field((), description="of those that read and make batches")
    checkpoint_seconds: NonNegative = Field(60.0, description="time between checkpoints")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3, description="restarts of the train workers after one was lost"
    )

    @model_validator(mode="after")
    def _fewest(self) -> ClusterConfig:
        if (self.min_train_workers or 1) > self.train_workers:
            raise ValueError("min_train_workers is more than train_workers")
        return self

    @model_validator(mode="after")
    def _sizes(self) -> ClusterConfig:
        sizes = ("data_workers", "embed_workers", "train_cpus", "gpu")
        missing = [name for name in sizes if getattr(self, name) is None]
        if self.autoscaled and missing:
            raise ValueError(f"autoscaled needs a value for {', '.join(missing)}")
        return self

    @property
    def worker_counts(self) -> range:
        """How many train workers there may be."""
        return range(self.min_train_workers or self.train_workers, self.train_workers + 1)


class TrackingConfig(Section):
    """Names in MLflow, and what a model card says; not part of a run's identity."""

    experiment: str = "dpmpp"
    model_name: str = "dpmpp"
    data_licence: str | None = Field(None, description="of the training data, for the model card")
    intended_use: str | None = Field(None, description="null = the card's own sentence")


class Config(Section):
    """Everything that decides what a run computes."""

    name: str = Field("custom", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    prompts: PromptsConfig = PromptsConfig()
    augment: AugmentConfig = AugmentConfig()
    occlusion: OcclusionConfig = OcclusionConfig()
    metric: MetricConfig = MetricConfig()
    pretrain: PretrainConfig = PretrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _masks(self) -> Config:
        masked = self.metric.loss.masked
        if self.model.bands and not masked:
            raise ValueError("model.bands learn from metric.loss.masked, which is 0")
        if self.model.mask_generator == "none":
            if self.metric.update == "alternating":
                raise ValueError("metric.update alternating needs a model.mask_generator")
            if self.metric.loss.visibility:
                raise ValueError("metric.loss.visibility needs a model.mask_generator")
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
