"""Batch norm whose batch is that of all train workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpmpp_core.models.distributed import mean_over_workers, worker_count


class WholeBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of the whole batch, over all workers.

    torch's own synchronised one runs on GPUs only. All workers must have equally many samples. On
    one worker, and in evaluation, it is `nn.BatchNorm2d` itself.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        if not self.training or worker_count() == 1:
            return super().forward(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            return self._normalise(inputs.float()).to(inputs.dtype)

    def _normalise(self, inputs: Tensor) -> Tensor:
        mean = mean_over_workers(inputs.mean(dim=(0, 2, 3)))
        centred = inputs - mean[:, None, None]
        # Two passes, since the mean of squares less the squared mean would lose digits.
        var = mean_over_workers(centred.square().mean(dim=(0, 2, 3)))
        self._update_running_statistics(
            mean, var, inputs.numel() // inputs.shape[1] * worker_count()
        )
        scale = self.weight * (var + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / max(1, count - 1), self.momentum)
