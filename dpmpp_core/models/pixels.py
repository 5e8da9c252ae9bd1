"""Conversion of pixels to the input of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dpmpp_core.data.images import Image


def to_tensor_batch(
    images: Image,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Normalise uint8 [N, H, W, 3] to float32 [N, 3, H, W]: (x / 255 - mean) / std by channel.

    A GPU gets a quarter of the bytes, the uint8, and normalises there.

    Args:
        images: uint8 [N, H, W, 3].
        mean: by channel, in [0, 1].
        std: likewise.
        device: where the result is wanted.
    """
    # Arrays out of shared memory are read-only, which torch would warn about.
    pixels = torch.from_numpy(images if images.flags.writeable else images.copy())
    scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float32))
    shift = torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
    if torch.device(device).type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
        scale, shift = scale.to(device), shift.to(device)
    count, height, width, channels = pixels.shape
    batch = torch.empty(count, channels, height, width, device=pixels.device)
    for channel in range(channels):  # three times faster than permuting the whole
        batch[:, channel] = pixels[..., channel]
    return batch.mul_(scale[:, None, None]).sub_(shift[:, None, None])
