"""Visibility consistency: a mask should weight dimensions that occlusion does not change (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = 1e-3  # of a dimension's mean squared error; keeps the logarithms finite


def visibility_likelihood(masks: Tensor, errors: Tensor, mixed: Tensor) -> Tensor:
    """Compute the negative log-likelihood of occlusion errors under the mask, against no mask.

    The mask is the precision of errors: each error e_id of sample i in dimension d is taken as
    Gaussian with variance c_i / r_id. Errors and masks r_id are relative to the dimension's mean
    over the batch; c_i is the sample's scale at its most likely value. Per dimension:

        1/2 [log mean_d(r_id x_id) - log mean_d(x_id) - mean_d log r_id]
        x_id = e_id^2 / mean_j(e_jd^2)

    The mask learns in which dimensions a sample is more reliable than its own and the dimension's
    average: the minimum is at r_id ~ 1 / E[x_id]. A mask that is the same for all samples has r = 1
    and gives exactly 0; so does one that only changes its scale, which the masked metric ignores.

    Args:
        masks: float [B, D], positive: of the occluded views.
        errors: float [B, D] squared differences between the features of the occluded and the clean
            view; taken as constants.
        mixed: bool [B], the samples that have two views; the others take no part.

    Returns:
        float32 scalar, nats per dimension; negative = better than a static mask; 0 for none mixed.
    """
    count = mixed.sum().clamp(min=1)
    rows = mixed[:, None]
    masks = torch.where(rows, masks.float(), 0.0)
    errors = torch.where(rows, errors.detach().float(), 0.0)
    r = torch.where(rows, masks / (masks.sum(dim=0) / count).clamp_min(1e-12), 1.0)
    x = errors / (errors.sum(dim=0) / count).clamp_min(1e-12) + _FLOOR
    log_r = r.clamp_min(1e-12).log()
    nats = (r * x).mean(dim=1).log() - x.mean(dim=1).log() - log_r.mean(dim=1)
    return 0.5 * torch.where(mixed, nats, 0.0).sum() / count
