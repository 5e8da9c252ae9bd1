"""Learnable prompts in text towers of every kind, against open_clip's own text features."""

from __future__ import annotations

import open_clip
import pytest
import torch

from dpmpp_core.config import ModelConfig, load_config
from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.models.clip import build_clip, find_tokenizer
from dpmpp_core.models.prompts import PromptLearner
from dpmpp_core.models.weights import unit_text
from dpmpp_core.tasks.prompts import PromptTask
from tests.support.families import OPEN_CLIP

SENTENCE = "A photo of a tall grey young man person."
TOWERS = ("test-clip", "test-eva", "test-coca", "test-sigmoid")


def started(backbone):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ModelConfig(backbone=backbone, pretrained=None)
        return build_clip(config, 64, 32).eval(), config


def own_text(clip, words):
    result = clip.text(words) if hasattr(clip, "text") else clip.encode_text(words)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("backbone", TOWERS)
@torch.no_grad()
def test_prompts_with_real_words_are_what_the_text_tower_says(backbone):
    clip, config = started(backbone)
    words = find_tokenizer(backbone)([SENTENCE])
    assert words.shape == (1, 20)
    learner = PromptLearner(clip, config, classes=2).eval()
    assert torch.equal(words[0, : learner.first], learner.ids[: learner.first])
    learner.tokens[1] = learner.token_embedding(words[0, learner.first : learner.first + 4])
    text = learner(torch.tensor([1, 0, 1]))
    torch.testing.assert_close(text[:1], own_text(clip, words), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text[0], text[2])
    assert (text[0] - text[1]).abs().max() > 1e-3


def test_only_causal_towers_are_cut():
    lengths = {b: len(PromptLearner(*started(b), classes=1).ids) for b in TOWERS}
    assert lengths == {"test-clip": 12, "test-eva": 12, "test-coca": 20, "test-sigmoid": 20}


@pytest.mark.parametrize("backbone", TOWERS)
def test_only_the_words_learn(backbone):
    learner = PromptLearner(*started(backbone), classes=4)
    assert [n for n, p in learner.named_parameters() if p.requires_grad] == ["tokens"]
    learner(torch.tensor([2, 0])).square().sum().backward()
    moved = learner.tokens.grad.abs().sum(dim=(1, 2)) > 0
    assert moved.tolist() == [True, False, True, False]


@pytest.mark.parametrize("backbone", TOWERS)
def test_sentences_that_would_be_cut_are_refused(backbone):
    clip, config = started(backbone)
    for changes in ({"prompt": "one {} " + "two " * 13}, {"prompt_tokens": 30}):
        with pytest.raises(ConfigError, match="stay below the text tower's 20 tokens"):
            PromptLearner(clip, config.model_copy(update=changes), classes=1)


@pytest.mark.parametrize("backbone", TOWERS)
def test_stage_1_lowers_its_loss_on_unit_vectors(backbone):
    config = load_config("demo", [
        f"model.backbone={backbone}", "model.pretrained=null", "model.normalise_text=null",
        "prompts.lr=0.05", "data.height=64", "data.width=32",
    ])  # fmt: skip
    width = OPEN_CLIP[backbone]["embed_dim"]
    features = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    task = PromptTask(config, 20 * features, torch.arange(3).repeat(2))
    optimiser, course = task.optimiser(), []
    for _ in range(8):
        losses, _ = task(task.batch(torch.arange(6)))
        course.append(sum(losses.values()))
        optimiser.zero_grad()
        course[-1].backward()
        optimiser.step()
    assert course[-1] < 0.9 * course[0]
    results = task.results()
    assert results["texts"].shape == (3, width)
    torch.testing.assert_close(results["texts"].norm(dim=1), torch.ones(3))
    assert results["scale"] == pytest.approx(1 / 0.07, rel=1e-5)


@pytest.mark.parametrize(
    ("pretrained", "normalise", "unit"),
    [("openai", None, False), ("laion2b_s34b_b88k", None, True), (None, None, True),
     ("openai", True, True), (None, False, False)],
)  # fmt: skip
def test_raw_features_are_compared_for_the_weights_of_openai_alone(pretrained, normalise, unit):
    config = ModelConfig(pretrained=pretrained, normalise_text=normalise)
    assert unit_text(config) is unit


def test_tokenizer_of_the_hub_is_named_when_it_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"tokenizer of ViT-B-16-SigLIP \(timm/ViT"):
        find_tokenizer("ViT-B-16-SigLIP")
    for backbone in ("EVA02-B-16", "coca_ViT-B-32"):
        context = open_clip.get_model_config(backbone)["text_cfg"]["context_length"]
        assert find_tokenizer(backbone)(["a person"]).shape == (1, context)
