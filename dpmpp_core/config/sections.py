"""The sections of the configuration, typed and frozen.

Defaults are the published values of the production model (sources: DPM, ACM MM 2022; CLIP-ReID,
AAAI 2023; SPT, AAAI 2024) unless marked `ours`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, PositiveInt, model_validator

from dpmpp_core.config.section import NonNegative, Positive, Probability, Section, TwoOrMore, Whole
from dpmpp_core.config.training import (
    AugmentConfig,
    HeadConfig,
    MetricConfig,
    OcclusionConfig,
    PretrainConfig,
    PromptsConfig,
    SaliencyConfig,
)

Triple = tuple[float, float, float]
# MLflow refuses some of these characters late, and cannot search for the others.
MODEL_NAME = r"^[^/:'\"`\\%?#\s][^/:'\"`\\%?#]*$"
Label = Annotated[str, Field(pattern=r"^[^=\s]+=[^=\s]+$", description="key=value")]
Layout = Literal[
    "auto", "market1501", "msmt17", "occluded_reid", "p_duke", "partial_reid", "table", "folders"
]  # fmt: skip
LAYOUTS: tuple[str, ...] = get_args(Layout)


class DemoConfig(Section):
    """The generated demo data set (used when no data folder is given)."""

    train_identities: TwoOrMore = Field(120, description="persons to train on")
    test_identities: TwoOrMore = Field(60, description="other persons, to test on")
    cameras: Annotated[int, Field(ge=2, le=99)] = Field(
        6, description="cameras that differ in light, blur and colours"
    )
    train_images: PositiveInt = Field(8, description="images of each training identity")
    gallery_images: PositiveInt = Field(4, description="gallery images of each test identity")
    query_images: PositiveInt = Field(2, description="queries of each test identity, in each set")
    look_alikes: Probability = Field(
        0.75, description="share of the groups of four that look alike"
    )
    one_garment: bool = Field(False, description="look-alikes differ in one visible piece only")
    unseen: bool = Field(
        False,
        description="occluders and cameras of the test are never seen in training; every occluded "
        "query has a twin of the same name in query_holistic, the same photograph without occluder",
    )
    occluded_share: Probability = Field(0.1, description="share of training images with occluder")
    occlusion_range: tuple[Probability, Probability] = Field(
        (0.05, 0.25),
        description="share of the person that is hidden in training images with occluder",
    )
    seed: Whole = Field(0, description="decides everything that is drawn")

    @model_validator(mode="after")
    def _range(self) -> DemoConfig:
        low, high = self.occlusion_range
        if high - low < 0.05:
            raise ValueError(f"occlusion_range [{low}, {high}]: 0.05 apart at least")
        return self

    @model_validator(mode="after")
    def _cameras(self) -> DemoConfig:
        if self.unseen and self.cameras < 4:
            raise ValueError(
                f"unseen needs 4 cameras or more: two to train, one for the gallery and one for "
                f"queries; cameras is {self.cameras}"
            )
        return self


class DataConfig(Section):
    """Reading of a data folder."""

    layout: Layout = Field(
        "auto",
        description="auto = detect it; folders = a folder per person, which is never detected",
    )
    camera: str | None = Field(
        None,
        description="of the layout folders: regular expression whose first group, found below the "
        "person's folder, is the camera; null = the folder in between, or unknown",
    )
    occluded_queries: bool = Field(
        False, description="the queries of a market1501 folder are occluded, as in Occluded-Duke"
    )
    height: PositiveInt = Field(256, description="height of the model's images in pixels")
    width: PositiveInt = Field(128, description="width of the model's images in pixels")
    mean: Triple = Field((0.5, 0.5, 0.5), description="subtracted from RGB in [0, 1] (CLIP-ReID)")
    std: tuple[Positive, Positive, Positive] = Field(
        (0.5, 0.5, 0.5), description="by which RGB is then divided (CLIP-ReID)"
    )
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
    pretrained: str | None = Field("openai", description="tag of open_clip or timm; null = random")
    checkpoint: str | None = Field(None, description="local file; `pretrained` sets the activation")
    stride: PositiveInt | None = Field(None, description="patch stride; null = the patch size")
    taps: tuple[PositiveInt, ...] = Field(
        (2, 4, 10, 12), min_length=1, description="blocks the mask reads (DPM)"
    )
    mask_generator: Literal["light", "full", "none"] = Field(
        "none",
        description="masks of the class token's spaces: full is DPM's, light a smaller one (ours); "
        "none = 0.5 (no measurable gain in the ablation)",
    )
    attention_mask_depth: Probability | None = Field(
        0.33,
        description="share of the blocks after which patches that hide the body are masked from "
        "attention (ours); null = never",
    )
    visibility_head: str = Field(
        "auto",
        description="file of `dpmpp pretrain-head` that the visibility head starts from; auto = "
        "the package's, for its own weights; none = random",
    )
    bands_depth: Probability = Field(
        0.67, description="share of the blocks whose patch tokens the bands pool (ours)"
    )
    bands: Whole = Field(
        8,
        description="horizontal bands of the person with a feature and a mask each (ours); 0 = off",
    )
    band_masks: Literal["visible", "constant"] = Field(
        "visible", description="visible = by the visible share of a band (ours); constant = none"
    )
    retrieval_features: Literal["post_bn", "pre_bn"] = Field(
        "post_bn", description="post_bn (ours): the space in which the mask is trained"
    )
    prompt_tokens: PositiveInt = Field(4, description="learnable words per identity (CLIP-ReID)")
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


class EvaluationConfig(Section):
    """What is measured, and how many images are embedded at a time."""

    batch: PositiveInt = Field(64, description="images embedded at a time")
    robustness: bool = Field(
        False,
        description="also measure clean queries occluded more and more, for the report (ours)",
    )
    shots: tuple[PositiveInt, ...] = Field(
        (),
        description="measure tracklets too: so many queries of one person and camera as one, such "
        "as [1,2,4,8] (ours)",
    )


class ClusterConfig(Section):
    """How much of the machine or cluster is used; not part of a run's identity."""

    train_workers: PositiveInt = Field(1, description="processes that train one model together")
    min_train_workers: PositiveInt | None = Field(
        None, description="continue with so few when nodes are lost; null = wait for all"
    )
    data_workers: PositiveInt | None = Field(
        None, description="processes that prepare batches; null = sized to the cluster"
    )
    train_cpus: PositiveInt | None = Field(
        None, description="CPUs of a train worker; null = sized to the cluster"
    )
    embed_workers: PositiveInt | None = Field(
        None, description="processes that embed, with a CPU each; null = sized to the cluster"
    )
    autoscaled: bool = Field(False, description="nodes start on request: sizes must be given")
    gpu: bool | None = Field(None, description="null = use GPUs where the cluster has them")
    train_nodes: tuple[Label, ...] = Field((), description="labels of the nodes that train")
    data_nodes: tuple[Label, ...] = Field(
        (), description="labels of the nodes that prepare batches"
    )
    checkpoint_seconds: NonNegative = Field(60.0, description="time between checkpoints in seconds")
    max_failures: Whole = Field(3, description="restarts after a train worker was lost")

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
        """Allowed numbers of train workers."""
        return range(self.min_train_workers or self.train_workers, self.train_workers + 1)


class TrackingConfig(Section):
    """Names in MLflow, and text of the model card; not part of a run's identity."""

    experiment: str = Field("dpmpp", description="experiment of MLflow, which groups the runs")
    model_name: str = Field(
        "dpmpp", pattern=MODEL_NAME, description="name of the model in MLflow's registry"
    )
    data_licence: str | None = Field(
        None, description="licence of the training data, for the model card"
    )
    intended_use: str | None = Field(
        None, description="what the model is for; null = the model card's own sentence"
    )


class Config(Section):
    """Everything that decides what a run computes."""

    name: str = Field(
        "custom",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="name of the configuration; runs on the demo set are named after it",
    )
    seed: Whole = Field(
        0, description="decides random weights, batches, occlusions and bootstrap intervals"
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    prompts: PromptsConfig = PromptsConfig()
    augment: AugmentConfig = AugmentConfig()
    occlusion: OcclusionConfig = OcclusionConfig()
    metric: MetricConfig = MetricConfig()
    pretrain: PretrainConfig = PretrainConfig()
    head: HeadConfig = HeadConfig()
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
        """Return the configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
