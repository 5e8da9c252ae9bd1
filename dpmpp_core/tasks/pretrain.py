"""Pre-training: a small CLIP from generated people and their captions (ours).

Two contrasts in one batch of P identities x K pictures: pictures of one person against those of
the others (supervised contrast, Khosla et al. 2020), in both spaces of retrieval, and pictures
against captions (CLIP). In most epochs the encoder gets a random share of the patches only (FLIP,
Li et al. 2023), which costs a third and hides parts as an occluder does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dpmpp_core.config import Config
from dpmpp_core.data.plan import Draw, stream
from dpmpp_core.losses.contrast import caption_contrast, multi_view_contrast
from dpmpp_core.models.clip import find_tokenizer
from dpmpp_core.models.distributed import gather, gather_together
from dpmpp_core.models.reid import start_clip
from dpmpp_core.tasks.feed import copy_to_device
from dpmpp_core.tasks.schedule import parameter_group, warmup_cosine
from dpmpp_core.tasks.task import Task


class PretrainTask(Task):
    """Contrasts of pictures with pictures and with captions.

    Args:
        config: the run's configuration.
        captions: of each training identity, in the order of the class labels.
        steps_per_epoch: length of the step plan.
    """

    tokens: Tensor

    def __init__(self, config: Config, captions: Sequence[str], steps_per_epoch: int) -> None:
        section = config.pretrain
        super().__init__(config, section.epochs, steps_per_epoch)
        self.clip = start_clip(config)
        tokens = find_tokenizer(config.model.backbone)(list(captions))
        self.register_buffer("tokens", tokens, persistent=False)

    def forward(
        self, batch: Mapping[str, Tensor], phase: str = "joint"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute one step's losses.

        Args:
            batch: `images` uint8 [B, H, W, 3]; `labels` int64 [B]; `step` int, the global step.
            phase: there is one.
        """
        section = self.config.pretrain
        images = batch["images"]
        drawn = self._draw_patches(int(batch["step"]), len(images))
        kept = copy_to_device(drawn, images.device)
        with self.autocast():
            shown = self._select_patches(images, kept)
            visual, joint = encode_patches(self.clip.visual, shown, kept)
            labels = gather(batch["labels"])
            classes, index = labels.unique(return_inverse=True)
            text = nn.functional.normalize(
                self.clip.encode_text(self.tokens[classes]).float(), dim=1
            )
        gathered = gather_together({"visual": visual.float(), "joint": joint.float()})
        spaces = {name: nn.functional.normalize(x, dim=1) for name, x in gathered.items()}
        losses = {
            f"image_{name}": 0.5 * multi_view_contrast(feature, labels, section.temperature)
            for name, feature in spaces.items()
        }
        scale = self.clip.logit_scale.exp().clamp(max=100)
        same = (self.tokens[classes][:, None] == self.tokens[classes][None]).all(dim=2)
        losses["text"] = section.text * caption_contrast(spaces["joint"], text, index, same, scale)
        correct = (spaces["joint"].detach() @ text.detach().T).argmax(dim=1) == index
        return losses, {"caption_accuracy": correct.float().mean(), "scale": scale.detach()}

    def _select_patches(self, images: Tensor, kept: Tensor) -> Tensor:
        """Select the patches `kept` and normalise them, float32 [B, n, values]."""
        size = self.clip.visual.conv1.kernel_size[0]
        batch, height, width, _ = images.shape
        patches = images.view(batch, height // size, size, width // size, size, 3)
        patches = patches.transpose(2, 3).reshape(batch, -1, size * size * 3)
        shown = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        pixels = shown.unflatten(2, (-1, 3)) - self.pixel_mean
        return (pixels / self.pixel_std).flatten(2)

    def _draw_patches(self, step: int, images: int) -> Tensor:
        """Draw numbers of patches, int64 [B, kept], each row without repetition."""
        section = self.config.pretrain
        epoch, at = divmod(step, self.steps_per_epoch)
        patches = self.clip.visual.positional_embedding.shape[0] - 1
        whole = epoch >= section.epochs - section.whole_epochs
        kept = patches if whole else max(1, round(section.kept_patches * patches))
        rng = stream(self.config.seed, epoch, at, 0, Draw.PATCHES)
        order = rng.random((images, patches)).argsort(axis=1)[:, :kept]
        return torch.from_numpy(np.ascontiguousarray(order))

    def optimiser(self) -> torch.optim.Optimizer:
        """See `Task`."""
        section = self.config.pretrain
        named = self.clip.named_parameters()
        groups = parameter_group(named, section.lr, 1.0, section.weight_decay)
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def lr_factor(self, step: int) -> float:
        """See `Task`."""
        section = self.config.pretrain
        epoch = step / self.steps_per_epoch
        return warmup_cosine(epoch, section.warmup_epochs, section.epochs, 0.005)

    def filter_gradients(self, phase: str) -> None:
        """Clip all gradients."""
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def trained_state(self) -> dict[str, Tensor]:
        """See `Task`."""
        return {name: tensor.detach() for name, tensor in self.clip.state_dict().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Task`."""
        self.clip.load_state_dict(dict(state))


@torch.inference_mode()
def encode_captions(clip: Any, backbone: str, captions: Sequence[str]) -> Tensor:
    """Compute unit text features of captions, float32 [N, P]."""
    tokenizer = find_tokenizer(backbone)
    parts = [
        clip.encode_text(tokenizer(list(captions[i : i + 256])), normalize=True)
        for i in range(0, len(captions), 256)
    ]
    return torch.cat(parts).float()


def encode_patches(
    tower: VisionTransformer, patches: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode some of the patches of each image.

    Args:
        tower: an open_clip image tower with a class token and patches that do not overlap.
        patches: normalised float [B, n, patch * patch * 3], pixel by pixel, colours innermost.
        places: int64 [B, n], the number of each patch in the grid.

    Returns:
        class token after the last layer norm [B, D], and its projection [B, P].
    """
    weight = tower.conv1.weight.permute(0, 2, 3, 1).flatten(1)
    x = nn.functional.linear(patches, weight)
    x = x + tower.positional_embedding[1:][places].to(x.dtype)
    cls = (tower.class_embedding + tower.positional_embedding[0]).to(x.dtype)
    x = tower.ln_pre(torch.cat([cls.expand(len(x), 1, -1), x], dim=1))
    visual = tower.ln_post(tower.transformer(x)[:, 0])
    return visual, visual @ tower.proj
