"""The configuration: one typed, frozen object per run.

A recipe (a YAML file in `recipes/` or one of the user's) plus dotted overrides gives a `Config`.
Everything is validated before anything starts; unknown keys are refused with the nearest valid one.
"""

from dpmpp_core.config.reading import (
    config_keys,
    fingerprint,
    load_config,
    parse_seeds,
    recipe_names,
)
from dpmpp_core.config.section import Section
from dpmpp_core.config.sections import (
    LAYOUTS,
    ClusterConfig,
    Config,
    DataConfig,
    DemoConfig,
    EvaluationConfig,
    ModelConfig,
    TrackingConfig,
)
from dpmpp_core.config.training import (
    AugmentConfig,
    LossConfig,
    MetricConfig,
    OcclusionConfig,
    PretrainConfig,
    PromptsConfig,
    SaliencyConfig,
)

__all__ = [
    "LAYOUTS", "AugmentConfig", "ClusterConfig", "Config", "DataConfig", "DemoConfig",
    "EvaluationConfig", "LossConfig", "MetricConfig", "ModelConfig", "OcclusionConfig",
    "PretrainConfig", "PromptsConfig", "SaliencyConfig", "Section", "TrackingConfig",
    "config_keys", "fingerprint", "load_config", "parse_seeds", "recipe_names",
]  # fmt: skip
