"""Every family of backbones through the one encoder, against the tower's own code."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import EvaAttention
from torch import nn

from dpmpp_core.config import ModelConfig, load_config
from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.models.attention import reading_logits
from dpmpp_core.models.clip import build_clip, check_weights, grid_size
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.reid import ReidModel, load_model, save_model
from dpmpp_core.models.towers import parts_of
from dpmpp_core.models.weights import has_text
from dpmpp_core.tasks.metric import MetricTask
from tests.support.families import BACKBONES, OPEN_CLIP, TIMM

SIZE = 96, 48
CLASSES = 3
WITHOUT_HEADS = {"test-mean", "timm/dpmpp_test_dinov3", "timm/test_vit2"}
PROJECTED = {"test-clip", "test-mean", "test-coca", "test-eva"}


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def settings(backbone, **changes):
    form = {"mask_generator": "light", "bands": 0}
    return ModelConfig(backbone=backbone, pretrained=None, taps=(1, 2, 4), **form | changes)


def make(backbone, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = settings(backbone, **changes)
        encoder = ImageEncoder(build_clip(config, *SIZE).visual, config.taps).eval()
        for name, parameter in encoder.named_parameters():  # layer scales start near nothing
            if name.endswith("gamma") or "gamma_" in name:
                nn.init.ones_(parameter)
    return encoder


def images(count=2, height=SIZE[0], width=SIZE[1]):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def trunk_of(encoder):
    return getattr(encoder.tower, "trunk", encoder.tower)


@pytest.fixture(scope="module", params=BACKBONES)
def family(request):
    return request.param, make(request.param)


# --- what comes out -----------------------------------------------------------------------------


@torch.no_grad()
def test_every_family_fills_the_same_shapes(family):
    backbone, encoder = family
    grid = grid_size(settings(backbone), *SIZE)
    assert grid == (6, 3)
    encoded = encoder(images())
    assert encoded.taps.shape == (2, 3 * encoder.token_width, *grid)
    assert encoded.block11.shape == (2, encoder.token_width)
    assert encoded.visual.shape == (2, encoder.spaces["visual"])
    assert has_text(settings(backbone)) == (encoded.joint is not None) == (backbone in OPEN_CLIP)
    if encoded.joint is not None:
        assert encoded.joint.shape == (2, encoder.spaces["joint"])
    assert (encoded.heads is None) == (backbone in WITHOUT_HEADS)
    if encoded.heads is not None:
        assert encoded.heads.shape[0] == 2 and encoded.heads.shape[2] == grid[0] * grid[1]
    again = encoder(images())
    assert torch.equal(encoded.visual, again.visual) and torch.equal(encoded.taps, again.taps)
    close(encoder(images()[1:]).visual, encoded.visual[1:])


@torch.no_grad()
def test_features_are_those_of_the_tower_s_own_pass(family):
    backbone, encoder = family
    result = encoder.tower(images())
    result = result[0] if isinstance(result, tuple) else result
    encoded = encoder(images())
    close(encoded.visual if encoded.joint is None else encoded.joint, result)
    directions = torch.eye(encoder.spaces["visual"])
    projected = encoder.project(directions)
    assert (projected is not None) == (backbone in PROJECTED)
    if projected is not None:  # linear up to a bias
        difference = encoded.visual[0] - encoded.visual[1]
        close(difference @ projected, encoded.joint[0] - encoded.joint[1])


@torch.no_grad()
def test_taps_and_block_11_are_what_the_tower_s_blocks_give(family):
    backbone, encoder = family
    trunk = trunk_of(encoder)
    depth = len(trunk.blocks) if hasattr(trunk, "blocks") else len(trunk.transformer.resblocks)
    indices = [tap - 1 for tap in encoder.taps] + [depth - 2]
    if hasattr(trunk, "blocks"):
        found = trunk.forward_intermediates(
            images(), indices, return_prefix_tokens=trunk.num_prefix_tokens > 0,
            intermediates_only=True,
        )  # fmt: skip
        found = [f if isinstance(f, tuple) else (f, None) for f in found]
        classed = trunk.global_pool == "token"
    else:
        result = trunk.forward_intermediates(images(), indices, output_extra_tokens=True)
        keys = "image_intermediates", "image_intermediates_prefix"
        found = list(zip(*(result[key] for key in keys), strict=True))
        classed = backbone == "test-clip"
    by_index = dict(zip(sorted(set(indices)), found, strict=True))
    encoded = encoder(images())
    close(encoded.taps, torch.cat([by_index[tap - 1][0] for tap in encoder.taps], dim=1))
    patches, prefix = by_index[depth - 2]
    close(encoded.block11, prefix[:, 0] if classed else patches.mean(dim=(2, 3)))


@torch.no_grad()
def test_visual_of_siglip_is_the_mean_of_its_last_tokens():
    encoder = make("test-sigmoid")
    trunk = encoder.tower.trunk
    encoded = encoder(images())
    close(encoded.visual, trunk.forward_features(images()).mean(dim=1))
    assert (encoded.visual - encoded.joint).abs().max() > 0.1
    alone = make("timm/dpmpp_test_siglip")
    close(alone(images()).visual, alone.tower(images()))


@torch.no_grad()
def test_overlapping_patches_and_odd_sizes(family):
    backbone, _ = family
    for stride, size in ((12, SIZE), (11, (75, 50)), (None, (71, 45))):
        config = settings(backbone, stride=stride)
        tower = build_clip(config, *size).visual
        encoded = ImageEncoder(tower, config.taps).eval()(images(1, *size))
        assert tuple(encoded.taps.shape[2:]) == grid_size(config, *size)
    with pytest.raises(ConfigError, match="stride 17 does not fit"):
        build_clip(settings(backbone, stride=17), *SIZE)


# --- patch weights ------------------------------------------------------------------------------


@torch.no_grad()
def test_patch_weights_weigh_patch_embeddings(family):
    _, encoder = family
    whole = encoder(images())
    rows, columns = whole.taps.shape[2:]
    ones = encoder(images(), torch.ones(2, rows * columns))
    assert torch.equal(ones.visual, whole.visual) and torch.equal(ones.taps, whole.taps)
    none = encoder(images(), torch.zeros(2, rows * columns))
    close(none.visual[0], none.visual[1])  # nothing of the picture is left
    assert (none.taps - whole.taps).abs().max() > 1e-3
    # One patch without weight: as if its pixels did not matter.
    weights = torch.ones(2, rows * columns)
    weights[:, columns + 1] = 0
    changed = images()
    patch = parts_of(encoder.tower).convolution.kernel_size[0]
    changed[:, :, patch : 2 * patch, patch : 2 * patch] += 5
    close(encoder(changed, weights).visual, encoder(images(), weights).visual)
    assert (encoder(changed).visual - whole.visual).abs().max() > 1e-4


def test_patch_weights_get_gradient(family):
    _, encoder = family
    weights = torch.full((2, 18), 0.5, requires_grad=True)
    encoder(images(), weights).taps.square().mean().backward()
    assert (weights.grad != 0).all()
    encoder.zero_grad()


# --- attention ----------------------------------------------------------------------------------


def attention_by_softmax(encoder, monkeypatch):
    """Weights of the reading query over all tokens, from the tower's own attention."""
    seen = []
    real = nn.functional.scaled_dot_product_attention

    def noting(q, k, v, *rest, **options):
        seen.append((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5)[:, :, 0])
        return real(q, k, v, *rest, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noting)
    encoder.train()  # open_clip's blocks then take the path that can be watched
    encoder.tower(images())
    encoder.eval()
    return seen[-1]


@pytest.mark.parametrize("backbone", [b for b in BACKBONES if b not in WITHOUT_HEADS])
def test_head_logits_are_those_that_the_tower_computes(backbone, monkeypatch):
    encoder = make(backbone)
    with torch.no_grad():
        logits = encoder(images()).heads
    whole = attention_by_softmax(encoder, monkeypatch)
    close(logits, whole[..., -logits.shape[2] :].detach(), atol=1e-5)
    assert logits.std() > 1e-3


@torch.no_grad()
def test_head_logits_with_grouped_keys_and_fused_projection():
    fused = EvaAttention(32, 2, scale_norm=False)
    nn.init.normal_(fused.q_bias)
    x = torch.randn(2, 6, 32)
    q, k, _ = (fused.qkv(x) + torch.cat([fused.q_bias, fused.k_bias, fused.v_bias])).chunk(3, -1)
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        expected = torch.einsum("bd,bnd->bn", q[:, 0, part], k[:, 1:, part]) / 4
        close(reading_logits(fused, x, 5)[:, head], expected)
    grouped = timm.layers.AttentionRope(32, 4, num_kv_heads=2, qkv_fused=False)
    q, k = grouped.q_proj(x[:, 0]).view(2, 4, 8), grouped.k_proj(x[:, 1:]).view(2, 5, 2, 8)
    for head in range(4):
        expected = torch.einsum("bd,bnd->bn", q[:, head], k[:, :, head // 2]) / 8**0.5
        close(reading_logits(grouped, x, 5)[:, head], expected)
    assert reading_logits(nn.Linear(32, 32), x, 5) is None


# --- training and the saved model ---------------------------------------------------------------


def task_of(backbone, *overrides):
    config = load_config("demo", [
        f"data.height={SIZE[0]}", f"data.width={SIZE[1]}", f"model.backbone={backbone}",
        "model.taps=[1,2,4]", "model.pretrained=null", "metric.precision=fp32",
        "metric.loss.triplet=1", "model.mask_generator=light", "model.bands=2", *overrides,
    ])  # fmt: skip
    width = OPEN_CLIP[backbone]["embed_dim"] if backbone in OPEN_CLIP else 0
    texts = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    return MetricTask(config, nn.functional.normalize(texts, dim=1), 10.0, 5)


def batch():
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, *SIZE, 3), generator=draw, dtype=torch.uint8)
    visible = torch.rand(6, 6, 3, generator=draw) < 0.5
    return {
        "images": images,
        "visible": visible,
        "occluded": ~visible,
        "foreign": ~visible,
        "covered": images[::2],
        "covered_visible": visible[::2],
        "covered_occluded": ~visible[::2],
        "covered_foreign": ~visible[::2],
        "masked": ~visible,
        "known": torch.arange(6) % 2 == 0,
        "labels": torch.arange(CLASSES).repeat_interleave(2),
        "donor_labels": torch.tensor([1, -1, 2, -1, -1, 0]),
    }


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_two_steps_of_stage_2_reach_every_parameter(backbone, optimiser):
    changes = ("metric.loss.triplet_margin=null", "metric.loss.heads=1")
    task = task_of(backbone, f"metric.optimiser={optimiser}", *changes)
    task.train()
    steps = task.optimiser()
    for _ in range(2):  # the mask's trunk gets its first gradient once its zero layers moved
        losses, report = task(batch())
        steps.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        trainable = {n: p for n, p in task.named_parameters() if p.requires_grad}
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable.values())
        steps.step()
    assert all(loss.isfinite() for loss in (*losses.values(), *report.values()))
    assert [n for n, p in trainable.items() if not p.grad.any()] == []
    text = {"identity_joint", "masked_joint", "text", "text_transfer"}
    assert (text <= set(losses)) == (backbone in OPEN_CLIP)
    assert bool(text & set(losses)) == (backbone in OPEN_CLIP)
    assert ("heads" in losses) == (backbone not in WITHOUT_HEADS)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_models_come_back_with_their_spaces(backbone, tmp_path):
    task = task_of(backbone)
    model = task.model.eval()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.spaces == model.spaces
    pictures = batch()["images"].numpy()
    ours, theirs = model.embed(pictures), loaded.embed(pictures)
    assert set(ours.features) == set(ours.masks) == set(model.spaces)
    for space in model.spaces:
        assert np.array_equal(ours.features[space], theirs.features[space])
        assert np.array_equal(ours.masks[space], theirs.masks[space])


def test_model_without_text_has_one_space():
    config = load_config("demo")
    start = build_clip(settings("timm/test_vit"), *SIZE)
    model = ReidModel(settings("timm/test_vit"), config.data, start)
    assert model.spaces == {"visual": 64} and list(model.necks) == ["visual"]
    assert list(model.mask_generator.spaces) == ["visual"]


# --- weights of timm ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = timm.create_model("test_vit", num_classes=5)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path, model.state_dict()


@torch.no_grad()
def test_local_timm_weights_load_without_their_classifier(timm_file):
    path, state = timm_file
    config = settings("timm/test_vit", checkpoint=str(path))
    tower = build_clip(config, 96, 48).visual
    loaded = tower.state_dict()
    assert not any(name.startswith("head.") for name in loaded)
    for name in loaded.keys() - {"pos_embed"}:
        assert torch.equal(loaded[name], state[name]), name
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], (6, 3), num_prefix_tokens=1)
    close(loaded["pos_embed"], expected)


def test_files_of_another_network_are_refused_for_timm(tmp_path, timm_file):
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"other\.safetensors does not load as timm/test_vit: "):
        build_clip(settings("timm/test_vit", checkpoint=str(path)), *SIZE)
    with pytest.raises(WeightsError, match="does not load as timm/vit_tiny_patch16_224"):
        build_clip(settings("timm/vit_tiny_patch16_224", checkpoint=str(timm_file[0])), *SIZE)
    gone = settings("timm/test_vit", checkpoint=str(tmp_path / "gone"))
    with pytest.raises(WeightsError, match="no file"):
        check_weights(gone)


def test_timm_tags_are_checked_and_absent_files_explained(monkeypatch, tmp_path):
    config = ModelConfig(backbone="timm/vit_base_patch16_224")  # the default tag is OpenAI's
    with pytest.raises(ConfigError, match=r"no tag 'openai' \(tags: augreg2_in21k_ft_in1k, .*null"):
        check_weights(config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for named in (
        {"backbone": config.backbone, "pretrained": "orig_in21k"},
        {"backbone": "timm/vit_base_patch16_224.orig_in21k"},
        {"backbone": "timm/vit_base_patch16_224.orig_in21k", "pretrained": "mae"},
    ):
        with pytest.raises(WeightsError) as caught:
            check_weights(ModelConfig(**named))
        for part in ("timm/vit_base_patch16_224.orig_in21k", "model.checkpoint=",
                     "model.pretrained=null"):  # fmt: skip
            assert part in str(caught.value)
    assert check_weights(settings("timm/vit_base_patch16_224.orig_in21k")) is None


def test_published_towers_of_every_kind_are_known():
    for backbone, patches in {
        "EVA02-B-16": (16, 8), "ViT-B-16-SigLIP": (16, 8), "coca_ViT-B-32": (8, 4),
        "PE-Core-B-16": (16, 8), "ViT-SO400M-14-SigLIP": (18, 9),
        "timm/vit_base_patch16_224.augreg_in21k": (16, 8),
        "timm/vit_small_patch14_reg4_dinov2": (18, 9), "timm/deit3_base_patch16_224": (16, 8),
        "timm/eva02_base_patch14_224": (18, 9), "timm/vit_base_patch16_dinov3": (16, 8),
        "timm/beitv2_base_patch16_224": (16, 8),
        "timm/deit_base_distilled_patch16_224": (16, 8),
    }.items():  # fmt: skip
        assert grid_size(settings(backbone), 256, 128) == patches
    assert set(TIMM) and set(open_clip.list_models()) >= set(OPEN_CLIP)
