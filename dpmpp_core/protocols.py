"""Published protocols: data and recipes, published results, resources of a run.

Each protocol is a YAML file in `recipes/protocols/`. Time and memory are computed from the
published counts of images and identities and from the recipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpmpp_core.config import Config, Section, load_config
from dpmpp_core.config.shipped import read_named, shipped_names
from dpmpp_core.data.published import PUBLISHED
from dpmpp_core.errors import ConfigError, suggest

Percent = Annotated[float, Field(ge=0, le=100)]
FOLDER = "protocols"
FIGURES = ("rank1", "mAP")

# Multiply-adds of ViT-B/16 at 256x128, stride 16, counted: tests/bench/results/stage2_step.md; the
# text with torch.utils.flop_counter.
ENCODER_MACS = 11.3e9  # per image
GENERATOR_MACS = {"none": 0.0, "light": 0.12e9, "full": 5.8e9}  # per image
METRIC_MACS = 0.08e9  # per image: attention of the class token, prototypes
TEXT_MACS = 0.455e9  # per prompt of 12 tokens through CLIP's text transformer
# Bytes per image that a step keeps for the backward pass, by CUDA's lists of autocast; counted on
# an emulated device, not measured.
SALIENCY_BYTES, STAGE_2_BYTES = 137e6, 50.6e6
PARAMETER_BYTES = 90e6 * 18  # float32 weight, gradient, Adam's two moments; bf16 copy
GPU = "NVIDIA RTX 3090, 24 GB"
GPU_FLOPS = 39e12  # estimated by a roofline calibrated on timm's ViT-B/16 (41 on this card)


class PublishedResult(Section):
    """Published results of a method, percent; 256x128, no re-ranking."""

    method: str
    rank1: Percent | None = Field(None, description="null = not known")
    mAP: Percent


class Target(Section):
    """Data on which a protocol tests, if not those it trains on."""

    recipe: str
    dataset: str


class Protocol(Section):
    """One published comparison.

    Attributes:
        title: as papers write it.
        recipe: the recipe that trains, and tests where `test` is None.
        dataset: key of `data.published.PUBLISHED`: the counts of the training folder.
        test: another data folder to test on.
        queries: the query set whose figures are compared.
        published: methods to compare with; empty where no figure is available.
    """

    title: str
    recipe: str
    dataset: str
    test: Target | None = None
    queries: Literal["occluded", "holistic"]
    published: tuple[PublishedResult, ...]

    def bracket(self, figure: str) -> tuple[float, float] | None:
        """Return the least and largest published `rank1` or `mAP`, percent; None without any."""
        figures = [getattr(result, figure) for result in self.published]
        values = [value for value in figures if value is not None]
        return (min(values), max(values)) if values else None

    def verdict(self, rank1: float, mAP: float) -> dict[str, str]:
        """Return `inside`, `below`, `above` or `no bracket` for each figure in percent."""
        verdicts = {}
        for figure, ours in zip(FIGURES, (rank1, mAP), strict=True):
            bracket = self.bracket(figure)
            if bracket is None:
                verdicts[figure] = "no bracket"
            else:
                low, high = bracket
                verdicts[figure] = "below" if ours < low else "above" if ours > high else "inside"
        return verdicts


class Needs(Section):
    """Resources of one seed of a protocol; estimates from counted arithmetic, none was measured.

    Attributes:
        hours: of `GPU` at GPU_FLOPS, if the data workers keep up.
        gpu_gigabytes: 10^9 bytes of GPU memory, at the largest step of training.
        images_a_second: throughput that this requires of the data workers in stage 2.
    """

    hours: float
    gpu_gigabytes: float
    images_a_second: float


def protocol_names() -> list[str]:
    """Return the names of the protocols shipped with the package."""
    return shipped_names(FOLDER)


def load_protocol(name: str) -> Protocol:
    """Read a shipped protocol; ConfigError for an unknown name, with the nearest one."""
    names = protocol_names()
    if name not in names:
        hint = suggest(name, names)
        raise ConfigError(f"no protocol named {name!r}{hint} (protocols: {', '.join(names)})")
    return Protocol.model_validate(read_named("protocol", name, FOLDER))


def needs(protocol: Protocol) -> Needs:
    """Estimate time and memory of one seed on one GPU (ours).

    A training step costs three forward passes, one for the forward and two for the backward
    direction; the frozen text tower has no weight gradients, so two. A visibility head adds half a
    batch, forward through the early blocks only; the alternating update a forward pass of the
    encoder, and the generator again. A multiply-add is two FLOPs. Images are embedded once for
    stage 1 and once for the person masks, queries and gallery once. Not counted: reading files,
    start-up, the optimiser.
    """
    config = load_config(protocol.recipe)
    counts = PUBLISHED[protocol.dataset]
    tested = counts | (PUBLISHED[protocol.test.dataset] if protocol.test else {})
    images, classes = counts["train"]
    assert classes is not None
    embedded = 2 * images + tested["query"][0] + tested["gallery"][0]
    step_macs = _step_macs(config)
    macs = (
        _saliency_macs(config, images)
        + _prompt_macs(config, images, classes)
        + config.metric.epochs * images * step_macs
        + embedded * ENCODER_MACS
    )
    saliency, metric = config.saliency, config.metric
    kept = max(
        saliency.identities * saliency.images * SALIENCY_BYTES,
        metric.identities * metric.images * STAGE_2_BYTES,
    )
    return Needs(
        hours=2 * macs / GPU_FLOPS / 3600,
        gpu_gigabytes=(PARAMETER_BYTES + kept) / 1e9,
        images_a_second=GPU_FLOPS / (2 * step_macs),
    )


def _step_macs(config: Config) -> float:
    """Count stage 2, per image."""
    model, generator = config.model, GENERATOR_MACS[config.model.mask_generator]
    macs = 3 * (ENCODER_MACS + METRIC_MACS + generator)
    if model.bands or model.attention_mask_depth:
        macs += 0.5 * (model.attention_mask_depth or 1.0) * ENCODER_MACS
    if config.metric.update == "alternating":
        macs += ENCODER_MACS + 3 * generator
    return macs


def _saliency_macs(config: Config, images: int) -> float:
    """Count stage 0: three passes per step - whole picture, person, background."""
    return config.saliency.epochs * images * 3 * 3 * ENCODER_MACS


def _prompt_macs(config: Config, images: int, classes: int) -> float:
    """Count stage 1: each identity of a batch is encoded once."""
    batch = config.prompts.batch
    texts = classes * (1 - (1 - 1 / classes) ** batch)  # identities in a random batch, expected
    return config.prompts.epochs * images / batch * texts * 2 * TEXT_MACS
