"""The visibility head and the attention mask: what is masked has no influence, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.losses.patches import patch_visibility
from dpmpp_core.models.clip import read_head
from dpmpp_core.models.reid import ReidModel, start_clip
from dpmpp_core.models.towers import parts_of
from dpmpp_core.models.visibility import VisibilityHead
from dpmpp_core.models.weights import starts_with_head
from tests.support.families import BACKBONES
from tests.support.tasks import config, metric_task, visibility_batch

DEPTH = "model.attention_mask_depth=0.33"


def built(backbone="dpmpp-small", *overrides):
    """A model with a backbone's attention mask, in evaluation mode, and two images for it."""
    start = [] if backbone == "dpmpp-small" else ["model.pretrained=null"]
    whole = config(f"model.backbone={backbone}", *start, DEPTH, "model.taps=[2,4,10,12]",
                   "model.mask_generator=none", *overrides)  # fmt: skip
    model = ReidModel(whole.model, whole.data, start_clip(whole)).eval()
    return model, torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_masked_patches_have_no_influence_on_later_blocks(backbone):
    """Their tokens after the last block that sees them are replaced by noise."""
    model, images = built(backbone)
    parts = parts_of(model.encoder.tower)
    if parts.reader is None:
        pytest.skip("a mean over all patches reads the masked ones too")
    plain = model.encoder(images)
    rows, columns = plain.taps.shape[-2:]
    masked = torch.zeros(2, rows, columns, dtype=torch.bool)
    masked[0, : rows // 2] = True
    expected = model(images, masked).features["visual"]
    # Where a pooling attention gives the joint feature, the visual one is a mean over patches.
    space = "visual" if parts.classed or "joint" not in model.spaces else "joint"

    def replaced(_module, _inputs, output):
        noise = torch.randn(rows * columns, output.shape[-1]) * masked[0].flatten()[:, None]
        output = output.clone()
        output[0, -rows * columns :] += noise
        return output

    block = parts.blocks[model.encoder._mask_after - 1]
    hook = block.register_forward_hook(replaced)
    disturbed, open_ = model(images, masked), model.encoder(images)
    hook.remove()
    torch.testing.assert_close(disturbed.features[space], model(images, masked).features[space])
    assert (open_.visual[0] - plain.visual[0]).abs().max() > 1e-3
    assert (expected[0] - plain.visual[0]).abs().max() > 1e-4
    torch.testing.assert_close(expected[1], plain.visual[1])


@torch.inference_mode()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_early_tokens_are_those_of_the_whole_encoder(backbone):
    model, images = built(backbone)
    early = model.encoder.encode_early(images)
    assert early.shape[1] == len(model.encoder.early_taps) * model.encoder.token_width
    torch.testing.assert_close(early, model.encoder(images).taps[:, : early.shape[1]])


@torch.inference_mode()
def test_where_all_patches_are_masked_none_is():
    model, images = built()
    everything = torch.ones(2, 4, 2, dtype=torch.bool)
    made = model(images, everything).features["visual"]
    torch.testing.assert_close(made, model.encoder(images).visual)


@torch.inference_mode()
def test_what_is_known_is_masked_and_the_prediction_elsewhere():
    model, images = built()
    model.visibility.patches[-1].bias[1] = 0.0
    predicted = model(images).visibility.occluded > 0
    bias = -model(images).visibility.occluded.median()
    model.visibility.patches[-1].bias[1] += bias  # half of the patches
    predicted = model(images).visibility.occluded > 0
    assert predicted.any() and not predicted.all()
    own = model(images).features["visual"]
    torch.testing.assert_close(model(images, predicted).features["visual"], own)
    mixed = model(images, torch.zeros_like(predicted), torch.tensor([True, False]))
    torch.testing.assert_close(mixed.features["visual"][1], own[1])
    torch.testing.assert_close(mixed.features["visual"][0], model.encoder(images).visual[0])
    pixels = torch.randint(0, 256, (2, 64, 32, 3), dtype=torch.uint8).numpy()
    embedded = model.embed(pixels)
    again = model.embed(pixels, masked=embedded.occluded > 0.5)
    assert embedded.occluded.dtype == np.float32 and embedded.occluded.shape == (2, 4, 2)
    assert (embedded.features["visual"] == again.features["visual"]).all()


def test_a_model_without_an_attention_mask_masks_nothing():
    model, images = built("dpmpp-small", "model.attention_mask_depth=null")
    assert model.visibility is None and model(images).visibility is None
    model, images = built("dpmpp-small", "model.attention_mask_depth=null", "model.bands=2")
    assert model(images).visibility.occluded is None
    assert model.embed(torch.zeros(1, 8, 8, 3, dtype=torch.uint8).numpy()).occluded is None


def test_the_head_learns_from_patches_alone_and_teaches_nobody():
    """A head that nobody taught before; one that was taught stays as it is."""
    task = metric_task(DEPTH, "model.bands=2", "model.visibility_head=none").train()
    losses, _ = task(visibility_batch())
    losses["patches"].backward()
    trained = {n.split(".")[1] for n, p in task.named_parameters() if p.grad is not None}
    assert trained == {"visibility"}
    task.zero_grad()
    torch.stack([x for name, x in losses_of(task).items() if name != "patches"]).sum().backward()
    assert all(p.grad is None for p in task.model.visibility.parameters())


def test_a_head_that_was_taught_before_learns_slowly_or_not_at_all():
    task = metric_task(DEPTH, "model.bands=2")
    fast = metric_task(DEPTH, "model.bands=2", "model.visibility_head=none")
    rates = [
        next(g["base_lr"] for g in one.optimiser().param_groups
             if any(p is one.model.visibility.patches[1].weight for p in g["params"]))
        for one in (task, fast)
    ]  # fmt: skip
    assert rates[0] == pytest.approx(rates[1] / 10)

    task = metric_task(DEPTH, "model.bands=2", "metric.head_lr=0").train()
    batch = visibility_batch()
    taught = {name: x.clone() for name, x in task.model.visibility.state_dict().items()}
    for name in [n for n in batch if "visible" in n or "occluded" in n or "covered" in n]:
        del batch[name]
    optimiser = task.optimiser()
    losses = task(batch)[0]
    assert "patches" not in losses
    torch.stack(list(losses.values())).sum().backward()
    optimiser.step()
    after = task.model.visibility.state_dict()
    assert all(torch.equal(taught[name], after[name]) for name in taught)
    assert not task.model.visibility.training


def losses_of(task):
    return task(visibility_batch())[0]


def test_patch_visibility_is_weighed_binary_cross_entropy_on_the_encoders_grid():
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 4, 2, generator=draw)
    visible = torch.rand(2, 4, 2, generator=draw) < 0.4
    occluded = ~visible & (torch.rand(2, 4, 2, generator=draw) < 0.5)
    foreign = occluded | (torch.rand(2, 4, 2, generator=draw) < 0.3)
    p, q = first.sigmoid(), second.sigmoid()
    naive = -(visible * p.log() + ~visible * (1 - p).log()).mean()
    truth = visible, occluded, foreign
    torch.testing.assert_close(patch_visibility(first, None, *truth), naive)
    body = visible | occluded
    weight = torch.where(body, 5.0, torch.where(foreign, 0.0, 1.0))
    amodal = -(weight * (occluded * q.log() + ~occluded * (1 - q).log())).mean()
    torch.testing.assert_close(patch_visibility(first, second, *truth), naive + amodal)
    sure = torch.full((2, 8, 4), 20.0), torch.full((2, 8, 4), -20.0)
    nothing = torch.zeros(2, 4, 2)
    assert 0 <= patch_visibility(*sure, nothing + 1, nothing, nothing) < 1e-6


def test_the_package_has_a_head_for_its_own_weights(tmp_path):
    whole = config(DEPTH)
    model = ReidModel(whole.model, whole.data, start_clip(whole))
    before = model.visibility.patches[1].weight.clone()
    model.start_head()
    assert not torch.equal(before, model.visibility.patches[1].weight)
    assert read_head(config(DEPTH, "model.pretrained=null").model) is None
    assert not starts_with_head(config(DEPTH, "model.visibility_head=none").model)
    other = config(DEPTH, "model.taps=[1,6]")
    model = ReidModel(other.model, other.data, start_clip(other))
    with pytest.raises(WeightsError, match="visibility_head=none"):
        model.start_head()
    named = config(DEPTH, f"model.visibility_head={tmp_path / 'none.safetensors'}")
    with pytest.raises(WeightsError, match="no file"):
        read_head(named.model)


def test_a_head_of_other_tokens_that_is_named_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "head.safetensors"
    save_file(VisibilityHead(192, amodal=True).state_dict(), path)
    whole = config(DEPTH, f"model.visibility_head={path}")
    model = ReidModel(whole.model, whole.data, start_clip(whole))
    with pytest.raises(WeightsError, match=r"model\.taps"):
        model.start_head()


def test_shares_of_masks_are_at_most_all_samples():
    with pytest.raises(ConfigError, match="true_masks"):
        config("metric.true_masks=0.7", "metric.predicted_masks=0.4")
