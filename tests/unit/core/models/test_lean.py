"""The lean layers of a tower: the results of those they replace, on an emulated GPU and a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from open_clip.transformer import LayerNorm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dpmpp_core.config import load_config
from dpmpp_core.models.lean import LeanAttention, LeanLayerNorm, use_lean_layers
from dpmpp_core.models.reid import start_clip
from tests.support.emulated_cuda import EmulatedCuda, emulated_cuda
from tests.support.kernels import CountKernels

TOKENS, WIDTH, HEADS = 9, 24, 3


@pytest.fixture
def cuda() -> Iterator[EmulatedCuda]:
    with emulated_cuda() as mode:
        yield mode


def layers() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = LayerNorm(WIDTH)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        nn.init.normal_(attention.in_proj_bias)
        return nn.Sequential(norm, attention)


def tokens() -> Tensor:
    return torch.randn(4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def attend(model: nn.Sequential, x: Tensor, hidden: Tensor | None) -> dict[str, Tensor]:
    """Return the result and all gradients, on the CPU."""
    x = x.clone().requires_grad_()
    y = model[0](x)
    y, weights = model[1](y, y, y, key_padding_mask=hidden, need_weights=False)
    assert weights is None
    y.square().sum().backward()
    gradients = {n: p.grad.cpu() for n, p in model.named_parameters()}
    return {"result": y.detach().cpu(), **gradients}


@pytest.mark.parametrize("masked", [False, True])
def test_results_and_gradients_are_those_of_torch(masked: bool, cuda: EmulatedCuda) -> None:
    hidden = torch.arange(4 * TOKENS).view(4, TOKENS) % 4 == 1 if masked else None
    expected = attend(layers(), tokens(), hidden)
    lean = layers()
    use_lean_layers(lean)
    assert [type(x) for x in lean] == [LeanLayerNorm, LeanAttention]
    lean.to("cuda")
    there = None if hidden is None else hidden.to("cuda")
    for name, value in attend(lean, tokens().to("cuda"), there).items():
        torch.testing.assert_close(
            value, expected[name], atol=1e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_nothing_is_copied_or_filled_between_product_and_attention(cuda: EmulatedCuda) -> None:
    counts = []
    for lean in (False, True):
        model = layers()
        if lean:
            use_lean_layers(model)
        model.to("cuda")
        with CountKernels() as kernels:
            attend(model, tokens().to("cuda"), None)
        counts.append(kernels.names)
    torchs, ours = counts
    assert torchs["aten.select_backward"] == 3 and ours["aten.select_backward"] == 0
    assert sum(ours.values()) < sum(torchs.values())


def test_layer_norm_stays_in_bf16(cuda: EmulatedCuda) -> None:
    norm = layers()[0]
    x = tokens().bfloat16()
    wanted = norm.double()(x.double())
    norm.float().__class__ = LeanLayerNorm
    norm.to("cuda")
    with CountKernels() as kernels:
        y = norm(x.to("cuda"))
    assert y.dtype == torch.bfloat16 and y.device.type == "cuda"
    assert kernels.names["aten._to_copy"] == 2  # the parameters, not the tokens
    torch.testing.assert_close(y.cpu().double(), wanted, atol=0.02, rtol=0.02)


def test_a_tower_keeps_its_names_and_on_a_cpu_its_results() -> None:
    model = start_clip(load_config("demo"))
    kinds = [type(x) for x in model.visual.modules()]
    assert kinds.count(LeanAttention) == len(model.visual.transformer.resblocks)
    assert LeanLayerNorm in kinds and LayerNorm not in kinds
    plain, lean = layers(), layers()
    use_lean_layers(lean)
    assert plain.state_dict().keys() == lean.state_dict().keys()
    for training in (True, False):
        for model in (plain, lean):
            model.train(training)
        a, b = attend(plain, tokens(), None), attend(lean, tokens(), None)
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_float32_on_a_cpu_that_is_slow_in_bf16(
    masked: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = []

    def attention(q: Tensor, k: Tensor, v: Tensor, read: Tensor | None) -> Tensor:
        kinds.append(q.dtype if torch.backends.cuda.flash_sdp_enabled() else "plain")
        return scaled_dot_product_attention(q, k, v, read)

    monkeypatch.setattr("dpmpp_core.models.lean.scaled_dot_product_attention", attention)
    monkeypatch.setattr("dpmpp_core.models.lean.HAS_AMX", amx)
    hidden = torch.arange(4 * TOKENS).view(4, TOKENS) % 4 == 1 if masked else None
    exact, lean = attend(layers(), tokens(), hidden), layers()
    use_lean_layers(lean)
    plain = sdpa_kernel(SDPBackend.MATH)  # as a training on a CPU chooses
    with plain, torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(lean, tokens(), hidden)
    assert kinds == ([] if amx else [torch.float32])
    assert found["result"].dtype == torch.bfloat16
    for name, value in found.items():
        scale = exact[name].abs().max()
        assert (value - exact[name]).abs().max() < 0.05 * scale, name
