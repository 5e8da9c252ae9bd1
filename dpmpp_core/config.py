"""The configuration: one typed, frozen object a run.

A recipe (a YAML file in `recipes/` or one of the user's) plus dotted overrides gives a `Config`.
Everything is validated before anything starts; unknown keys are refused with the nearest valid one.
Defaults are the published values of the production model (sources: DPM, ACM MM 2022; CLIP-ReID,
AAAI 2023; SPT, AAAI 2024) unless marked `ours`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from dpmpp_core.errors import ConfigError

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
Layout = Literal["auto", "market1501", "msmt17", "occluded_reid", "p_duke", "partial_reid"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DemoConfig(Section):
    """The generated demo data set (used when no data folder is given)."""

    train_identities: Annotated[int, Field(ge=2)] = 120
    test_identities: Annotated[int, Field(ge=2)] = 60
    cameras: Annotated[int, Field(ge=2, le=12)] = 6
    train_images: PositiveInt = Field(8, description="images of each training identity")
    gallery_images: PositiveInt = Field(4, description="gallery images of each test identity")
    query_images: PositiveInt = Field(2, description="queries of each test identity, in each set")
    seed: Annotated[int, Field(ge=0)] = 0


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
    mask_generator: Literal["light", "full"] = Field("light", description="light is ours, full DPM")
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
    """Stage 0: where the person is, one bitmask of patches an image."""

    target_ratio: Probability = Field(0.3, description="share of patches called person (SPT)")


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
    erase: Probability = Field(0.5, description="random erasing, only of images not mixed")


class OcclusionConfig(Section):
    """Saliency-guided patch transfer and its pairing (SPT; bounds are ours)."""

    probability: Probability = 0.5
    min_oiou: Probability = 0.7
    min_ratio: Probability = Field(0.1, description="least share of the person hidden")
    max_ratio: Probability = Field(0.6, description="largest share of the person hidden")
    min_donor: Probability = Field(0.05, description="least share of patches in the donor's mask")
    top_share: Probability = Field(0.1, description="draw from this best share of candidates")
    rolling: bool = True

    @model_validator(mode="after")
    def _range(self) -> OcclusionConfig:
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio {self.min_ratio} is above max_ratio {self.max_ratio}")
        return self


class LossConfig(Section):
    """Weights of the stage-2 losses (DPM, CLIP-ReID; text_transfer and heads are ours)."""

    identity: NonNegative = Field(0.25, description="plain cross entropy, each space")
    masked: NonNegative = Field(0.25, description="ArcFace on the masked metric, each space")
    triplet: NonNegative = 1.0
    text: NonNegative = Field(1.0, description="image-to-text cross entropy")
    text_transfer: NonNegative = Field(0.1, description="prototype-to-text contrast")
    heads: NonNegative = Field(1.0, description="diversity of the last block's heads")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    arcface_scale: Positive = 30.0
    arcface_margin: Annotated[float, Field(ge=0, lt=1.57)] = 0.3
    triplet_margin: NonNegative | None = Field(0.3, description="null = soft margin (softplus)")
    transfer_temperature: Positive = 0.05


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
    checkpoint_epochs: PositiveInt = Field(1, description="epochs between checkpoints")
    loss: LossConfig = LossConfig()


class EvaluationConfig(Section):
    batch: PositiveInt = 64


class ClusterConfig(Section):
    """How much of the machine or cluster is used; not part of a run's identity."""

    train_workers: PositiveInt = 1
    data_workers: PositiveInt | None = Field(None, description="null = sized to the cluster")
    gpu: bool | None = Field(None, description="null = use GPUs where the cluster has them")


class TrackingConfig(Section):
    """Names in MLflow; not part of a run's identity."""

    experiment: str = "dpmpp"
    model_name: str = "dpmpp"


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
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-able values and sections; equal values give equal ones anywhere."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# --- reading ------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """Names of the recipes shipped with the package."""
    folder = resources.files("dpmpp_core") / "recipes"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_config(source: str = "demo", overrides: Sequence[str] = ()) -> Config:
    """Read a recipe by name or a YAML file by path, apply `section.key=value` overrides, validate.

    A YAML file may start from a shipped recipe with a top-level `extends: NAME`.
    Values of overrides are read as YAML (`metric.epochs=3`, `metric.milestones=[10,20]`).

    Raises:
        ConfigError: an unknown recipe, key or value; names it and the nearest valid one.
    """
    tree = _read_tree(source)
    for override in overrides:
        _apply_override(tree, override)
    _refuse_unknown_keys(tree, source)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from None


def _read_tree(source: str, children: tuple[str, ...] = ()) -> dict[str, Any]:
    if source in recipe_names():
        text = (resources.files("dpmpp_core") / "recipes" / f"{source}.yaml").read_text()
        default_name = source
    elif Path(source).is_file():
        default_name = Path(source).stem
        try:
            text = Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{source}: not a text file in UTF-8") from None
    else:
        names = recipe_names()
        near = difflib.get_close_matches(source, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no recipe or file named {source!r}{hint} (recipes: {', '.join(names)})")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a mapping of sections is needed, not {type(tree).__name__}")
    tree.setdefault("name", default_name)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    lineage = (*children, source)
    if parent in lineage:
        raise ConfigError(f"{' extends '.join((*lineage, parent))}: a circle")
    return _merge(_read_tree(str(parent), lineage), tree)


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None
    *sections, leaf = key.strip().split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
        tree = child
    tree[leaf] = value


def _refuse_unknown_keys(tree: Mapping[str, Any], source: str) -> None:
    valid = set(config_keys())
    sections = {key.rsplit(".", 1)[0] for key in valid if "." in key}
    for key in _tree_keys(tree):
        if key in valid or key in sections:
            continue
        leaf = key.rsplit(".", 1)[-1]
        elsewhere = sorted(name for name in valid if name.rsplit(".", 1)[-1] == leaf)
        cutoff = 0.0 if elsewhere else 0.5  # a right leaf in a wrong section counts most
        near = difflib.get_close_matches(key, elsewhere or sorted(valid), n=1, cutoff=cutoff)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{source}: unknown configuration key {key!r}{hint}")


def config_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key that holds a value, in the order of definition."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from config_keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _tree_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _tree_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f" (it is {given!r})"
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


LAYOUTS: tuple[str, ...] = get_args(Layout)
