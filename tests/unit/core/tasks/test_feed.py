"""Batches on their way to the device."""

from __future__ import annotations

import numpy as np
import torch

from dpmpp_core.tasks.feed import copy_batches, to_host_tensor


def test_arrays_are_copied_also_read_only_ones_and_numbers() -> None:
    array = np.arange(6).reshape(2, 3)
    array.flags.writeable = False
    copied = to_host_tensor(array, pinned=False)
    copied += 1
    assert copied.tolist() == [[1, 2, 3], [4, 5, 6]] and array[0, 0] == 0
    for number in (np.array([7])[0], np.array(7)):  # the step, out of a row of Ray Data
        assert to_host_tensor(number, pinned=False).item() == 7


def test_a_batch_of_the_cpu_stays_there_in_order() -> None:
    batches = [{"labels": torch.tensor([i]), "step": torch.tensor(i)} for i in range(3)]
    copied = list(copy_batches(batches, torch.device("cpu")))
    assert (
        [int(batch["step"]) for batch in copied]
        == [0, 1, 2]
        == [int(batch["labels"]) for batch in copied]
    )
