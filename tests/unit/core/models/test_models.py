"""Networks against open_clip's own passes, and the weights that a user may hand in."""

from __future__ import annotations

import logging

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from dpmpp_core.config import ModelConfig, load_config
from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.models.clip import build_clip, check_weights, grid_size
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.mask_generator import MaskGenerator
from dpmpp_core.models.prompts import PromptLearner
from dpmpp_core.models.prototypes import Prototypes
from dpmpp_core.models.reid import start_clip

CONFIG = load_config("demo", ["data.height=64", "data.width=32"])
SMALL = ModelConfig(backbone="dpmpp-small", pretrained=None, taps=(1, 2, 4, 6))


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def seeded(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def fixed_random_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def clip():
    return start_clip(CONFIG).eval()


# --- encoder ------------------------------------------------------------------------------------


def blocks_seen(tower, images):
    """Output of every block and open_clip's own result, from its own forward pass."""
    seen = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, output: seen.append(output))
        for block in tower.transformer.resblocks
    ]
    result = tower(images)
    for hook in hooks:
        hook.remove()
    return seen, result


@pytest.mark.parametrize(
    ("height", "width", "stride", "grid"),
    [
        (64, 32, None, (4, 2)),
        (70, 50, 16, (4, 3)),
        (256, 128, 12, (21, 10)),
        (256, 128, 11, (22, 11)),
    ],
)
@torch.no_grad()
def test_encoder_sees_what_open_clip_s_tower_computes(height, width, stride, grid):
    config = SMALL.model_copy(update={"stride": stride})
    tower = build_clip(config, height, width).visual.eval()
    encoder = ImageEncoder(tower, config.taps)
    images = seeded(0, 2, 3, height, width)
    seen, result = blocks_seen(tower, images)
    encoded = encoder(images)
    close(encoded.joint, result)
    close(encoded.visual @ tower.proj, result)
    close(encoded.block11, seen[-2][:, 0])
    assert grid_size(config, height, width) == grid == tuple(encoded.taps.shape[2:])
    assert encoded.taps.shape == (2, 4 * 192, *grid)
    for k, tap in enumerate(config.taps):
        for row, column in ((0, 0), (0, grid[1] - 1), (grid[0] - 1, 1)):
            token = seen[tap - 1][:, 1 + row * grid[1] + column]
            close(encoded.taps[:, k * 192 : (k + 1) * 192, row, column], token)
    assert encoded.heads.shape == (2, 3, grid[0] * grid[1])


@torch.no_grad()
def test_head_logits_are_those_of_the_last_block_s_attention(clip):
    tower = clip.visual
    images = seeded(1, 3, 3, 64, 32)
    seen, _ = blocks_seen(tower, images)
    block = tower.transformer.resblocks[-1]
    x = block.ln_1(seen[-2])
    _, attention = block.attn(x, x, x, need_weights=True, average_attn_weights=False)
    patches = attention[:, :, 0, 1:]
    expected = patches / patches.sum(dim=-1, keepdim=True)
    logits = ImageEncoder(tower, SMALL.taps)(images).heads
    close(logits.softmax(dim=-1), expected, atol=1e-6)
    # Softmax forgets a constant; the class token's own logit does not.
    own = attention[:, :, 0, 0] / patches.sum(dim=-1)
    width, heads = 192, 3
    w, b = block.attn.in_proj_weight, block.attn.in_proj_bias
    q = (x[:, 0] @ w[:width].T + b[:width]).view(3, heads, -1)
    k = (x[:, 0] @ w[width : 2 * width].T + b[width : 2 * width]).view(3, heads, -1)
    close((q * k).sum(-1) / 8 - logits.logsumexp(dim=-1), own.log())


def test_taps_of_a_deeper_recipe_are_scaled_to_the_tower(clip):
    assert ImageEncoder(clip.visual, (2, 4, 10, 12)).taps == (1, 2, 5, 6)
    assert ImageEncoder(clip.visual, (1, 6)).taps == (1, 6)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_grid_is_that_of_the_patch_convolution(height, width, stride):
    config = SMALL.model_copy(update={"stride": stride})
    if height < 16 or width < 16 or stride > 16:
        with pytest.raises(ConfigError, match=f"stride {stride} does not fit"):
            grid_size(config, height, width)
    else:
        image = torch.empty(1, 3, height, width, device="meta")
        conv = nn.functional.conv2d(image, torch.empty(1, 3, 16, 16, device="meta"), stride=stride)
        assert grid_size(config, height, width) == tuple(conv.shape[2:])


@torch.no_grad()
def test_vit_b_16_has_the_published_shapes():
    config = ModelConfig(pretrained=None)
    encoder = ImageEncoder(build_clip(config, 256, 128).visual.eval(), config.taps)
    encoded = encoder(torch.zeros(1, 3, 256, 128))
    assert encoded.visual.shape == encoded.block11.shape == (1, 768)
    assert encoded.joint.shape == (1, 512)
    assert encoded.taps.shape == (1, 4 * 768, 16, 8)
    assert encoded.heads.shape == (1, 12, 128)


# --- weights ------------------------------------------------------------------------------------


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'ViT-B-61'; did you mean 'ViT-B-16'"):
        build_clip(ModelConfig(backbone="ViT-B-61", pretrained=None), 256, 128)


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        ("RN50", r"RN50.*no ViT patches"),
        ("convnext_base", "a ConvNeXt with a NoneType; a ViT with plain"),
        ("timm/resnet18", "resnet18 is a ResNet with"),
        ("timm/swin_tiny_patch4_window7_224", "SwinTransformer with"),
        ("timm/vit_base_r50_s16_224", "with a HybridEmbed; a ViT with plain"),
        ("timm/vit_bose_patch16_224", "no model 'vit_bose_patch16_224'; did you mean 'vit_base_"),
    ],
)
def test_backbone_without_patches_is_refused(backbone, problem):
    with pytest.raises(ConfigError, match=problem):
        build_clip(ModelConfig(backbone=backbone, pretrained=None), 256, 128)


def test_unknown_tag_lists_the_tags():
    with pytest.raises(ConfigError, match=r"no tag 'openia' \(tags: openai, laion400m_e31, .*null"):
        check_weights(ModelConfig(pretrained="openia"))
    with pytest.raises(ConfigError, match="tags: none"):
        check_weights(SMALL.model_copy(update={"pretrained": "openai"}))


def test_missing_checkpoint_is_named(tmp_path):
    for missing in (tmp_path / "gone.pt", tmp_path):
        with pytest.raises(WeightsError, match=rf"model\.checkpoint: no file {missing}"):
            check_weights(SMALL.model_copy(update={"checkpoint": str(missing)}))


def test_known_tag_without_a_network_says_what_to_fetch(monkeypatch, tmp_path):
    # The hub's client would retry for 47 s; offline it fails in the same place at once.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        build_clip(ModelConfig(), 256, 128)
    for part in ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai", "model.checkpoint=",
                 "model.pretrained=null"):  # fmt: skip
        assert part in str(caught.value)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"other\.safetensors does not load as dpmpp-small"):
        build_clip(SMALL.model_copy(update={"checkpoint": str(path)}), 64, 32)
    assert logging.root.manager.disable == logging.NOTSET


@pytest.fixture(scope="module")
def square_checkpoint(tmp_path_factory):
    square = open_clip.create_model("dpmpp-small", force_image_size=(224, 224))
    path = tmp_path_factory.mktemp("weights") / "square.safetensors"
    save_file(square.state_dict(), path)
    return path, square.state_dict()


@pytest.mark.parametrize(("stride", "grid"), [(None, (16, 8)), (12, (21, 10))])
def test_local_weights_load_with_positions_on_the_new_grid(square_checkpoint, stride, grid):
    path, weights = square_checkpoint
    config = SMALL.model_copy(update={"checkpoint": str(path), "stride": stride})
    state = build_clip(config, 256, 128).state_dict()
    old, new = (s.pop("visual.positional_embedding") for s in (weights.copy(), state))
    expected = nn.functional.interpolate(
        old[1:].T.reshape(1, -1, 14, 14), grid, mode="bicubic", antialias=True
    )
    close(new, torch.cat([old[:1], expected[0].flatten(1).T]))
    assert all(torch.equal(state[name], weights[name]) for name in state)
    assert len(state) == len(weights) - 1


# --- mask generator -----------------------------------------------------------------------------


@given(st.integers(1, 23), st.integers(1, 12), st.sampled_from(["light", "full"]))
@settings(max_examples=25, deadline=None)
def test_masks_start_at_exactly_one_half_on_every_grid(rows, columns, variant):
    generator = MaskGenerator(16, {"visual": 6, "joint": 3}, variant)
    for mode in (True, False):
        masks = generator.train(mode)(seeded(0, 2, 16, rows, columns))
        assert {name: mask.shape for name, mask in masks.items()} == {
            "visual": (2, 6),
            "joint": (2, 3),
        }
        assert all((mask == 0.5).all() for mask in masks.values())


@pytest.mark.parametrize("variant", ["light", "full"])
@pytest.mark.parametrize("grid", [(21, 10), (22, 11), (8, 4), (4, 2), (1, 1)])
@torch.no_grad()
def test_masks_depend_on_their_own_picture_alone(variant, grid):
    generator = MaskGenerator(16, {"joint": 5}, variant).eval()
    nn.init.normal_(generator.spaces["joint"].weight)
    taps = seeded(1, 3, 16, *grid)
    masks = generator(taps)["joint"]
    assert masks.dtype == torch.float32 and ((masks > 0) & (masks < 1)).all()
    assert torch.equal(masks, generator(taps)["joint"])
    close(masks[1:2], generator(taps[1:2])["joint"])
    assert (masks[0] - masks[1]).abs().max() > 1e-4


def test_mask_generator_sizes_are_those_documented():
    with torch.device("meta"):
        sizes = {
            variant: sum(p.numel() for p in
                         MaskGenerator(4 * 768, {"v": 768, "j": 512}, variant).parameters())
            for variant in ("full", "light")
        }  # fmt: skip
    assert 59e6 < sizes["full"] < 60e6 and 2e6 < sizes["light"] < 3e6


# --- prompts ------------------------------------------------------------------------------------

SENTENCE = "A photo of a tall grey young man person."


@torch.no_grad()
def test_truncated_prompt_equals_the_full_context_of_the_text_tower(clip):
    learner = PromptLearner(start_clip(CONFIG), SMALL, classes=2).eval()
    words = open_clip.get_tokenizer("dpmpp-small")([SENTENCE])
    assert words.shape == (1, 77)
    assert torch.equal(words[0, : learner.first], learner.ids[: learner.first])
    real = words[0, learner.first : learner.first + 4]
    learner.tokens[1] = clip.token_embedding(real)
    text = learner(torch.tensor([1, 0, 1]))
    close(text[:1], clip.encode_text(words))
    close(text[0], text[2])
    assert (text[0] - text[1]).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", ["A photo of a {} person.", "{} person", "a person who is {}"])
def test_prompt_ends_at_its_end_of_text_token(prompt):
    config = SMALL.model_copy(update={"prompt": prompt, "prompt_tokens": 3})
    learner = PromptLearner(start_clip(CONFIG), config, classes=1)
    words = open_clip.get_tokenizer("dpmpp-small")([prompt.replace("{}", "x x x")])[0]
    assert learner.read == int((words != 0).sum()) - 1 == len(learner.ids) - 1
    assert learner.ids[-1] == 49407 and learner.ids[0] == 49406
    assert len(learner.ids[learner.first : learner.first + 3].unique()) == 1


def test_only_the_tokens_of_the_asked_identities_learn():
    learner = PromptLearner(start_clip(CONFIG), SMALL, classes=4)
    assert [n for n, p in learner.named_parameters() if p.requires_grad] == ["tokens"]
    assert learner.tokens.shape == (4, 4, 128)
    learner(torch.tensor([2, 0])).square().sum().backward()
    assert [n for n, p in learner.named_parameters() if p.grad is not None] == ["tokens"]
    moved = learner.tokens.grad.abs().sum(dim=(1, 2)) > 0
    assert moved.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": "A photo of a person."}, "lacks the {}"),
        ({"prompt": "A photo of a{}person."}, "space"),
        ({"prompt_tokens": 80}, "77"),
    ],
)
def test_unusable_prompts_are_refused(clip, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        PromptLearner(clip, SMALL.model_copy(update=changes), classes=1)


def test_text_towers_that_prompts_cannot_drive_are_refused():
    unread = start_clip(CONFIG)
    unread.text_pool_type = "none"
    for tower in (nn.Module(), unread):
        with pytest.raises(ConfigError, match=r"backbone dpmpp-small: it has no open_clip transf"):
            PromptLearner(tower, SMALL, classes=1)


# --- prototypes ---------------------------------------------------------------------------------


def test_prototypes_start_along_their_texts_at_the_old_mean_length():
    prototypes = Prototypes(6, {"visual": 8, "joint": 5})
    before = {name: weight.detach().clone() for name, weight in prototypes.weight.items()}
    texts = seeded(0, 6, 5) + 10  # as CLIP's: a large part in common
    prototypes.init_from_text("joint", texts)
    weight = prototypes.weight["joint"]
    cosine = nn.functional.cosine_similarity(weight, texts - texts.mean(dim=0))
    close(cosine.detach(), torch.ones(6))
    close(weight.norm(dim=1).detach(), before["joint"].norm(dim=1).mean().expand(6))
    assert torch.equal(prototypes.weight["visual"], before["visual"])
    assert weight.requires_grad


@torch.no_grad()
def test_prototype_logits():
    prototypes, features = Prototypes(6, {"joint": 5}), seeded(1, 3, 5)
    weight = prototypes.weight["joint"]
    close(prototypes.plain("joint", features), features @ weight.T)
    masks = seeded(2, 3, 5).sigmoid()
    masked = prototypes.masked("joint", features.bfloat16(), masks)
    assert masked.shape == (3, 6) and masked.dtype == torch.float32
    assert masked.abs().max() <= 1 + 1e-6
    expected = [
        [nn.functional.cosine_similarity(f, m * w, dim=0) for w in weight]
        for f, m in zip(features, masks, strict=True)
    ]
    close(prototypes.masked("joint", features, masks), torch.tensor(expected))
