"""Faults that other code bases of this field have, and the test that keeps each of them out."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from pyarrow import fs

from dpmpp_core.models.pixels import to_tensor_batch
from pipelines.runtime.storage import MARKER, Storage
from tests.support.tasks import config, prompt_task

ROOT = Path(__file__).parents[2]

TRAPS = {
    "NaN distances give a plausible score": [
        "unit/core/retrieval/test_ranking.py::test_all_nan_does_not_give_a_plausible_score",
        "unit/core/retrieval/test_similarity.py::test_non_finite_values_are_refused_by_name_and_row",
        "unit/core/retrieval/test_search.py::test_bad_rows_and_arguments_are_refused_by_name",
        "unit/test_bad_input.py::test_bad_input_is_reported_and_nothing_is_lost",
    ],
    "the score of constant embeddings depends on the order of the gallery": [
        "unit/core/retrieval/test_ranking.py::test_constant_embeddings_earn_the_worst_rank",
        "unit/core/retrieval/test_ranking.py::test_order_of_the_gallery_changes_nothing",
        "unit/core/retrieval/test_search.py::test_constant_features_earn_the_worst_rank_in_any_order",
    ],
    "no query identity in the gallery": [
        "unit/core/retrieval/test_ranking.py::test_no_valid_query_is_an_error_of_the_data",
        "unit/core/retrieval/test_search.py::test_no_query_identity_in_the_gallery_is_an_error",
        "unit/core/data/test_manifest.py::test_queries_need_gallery_images_from_another_camera",
    ],
    "negative similarities count as not retrieved": [
        "unit/core/retrieval/test_ranking.py::test_negative_similarities_count_as_any_other",
        "unit/core/retrieval/test_search.py::test_features_that_all_point_away_are_ranked_too",
    ],
    "stage 1 fails where the batch divides the images": [
        "unit/test_traps.py::test_prompt_batches_that_divide_the_images_leave_no_empty_one",
        "unit/core/tasks/test_tasks.py::test_prompt_batches_hold_every_row_once_an_epoch_and_resume",
    ],
    "identities are numbered differently in each process": [
        "unit/core/data/test_plan.py::test_class_labels_are_sorted_and_invertible",
        "system/test_architecture.py::test_another_process_makes_the_same_plan",
    ],
    "re-ranking variants disagree": [
        "unit/core/retrieval/test_reranking.py::test_rerank_equals_the_transcription",
    ],
    "the ranking is not the one that was stated": [
        "unit/core/retrieval/test_search.py::test_topk_equals_brute_force_in_any_blocks_and_storage",
        "unit/core/retrieval/test_ranking.py::test_evaluator_equals_brute_force",
        "unit/core/retrieval/test_similarity.py::test_closed_form_equals_the_loop",
    ],
    "an unreadable image is tried for ever": [
        "unit/core/data/test_steps.py::test_a_missing_image_is_named",
        "unit/core/data/test_images.py::test_read_image_names_the_file",
    ],
    "weights are unpickled": [
        "unit/test_bad_input.py::test_bad_input_is_reported_and_nothing_is_lost",
        "unit/test_traps.py::test_torch_load_never_runs_code_anywhere",
    ],
    "a dead worker's half upload is mixed into the next": [
        "unit/test_traps.py::test_a_half_upload_is_gone_before_the_next_begins",
        "unit/pipelines/runtime/test_storage.py::test_what_a_killed_process_left_is_swept_by_the_next_commit",
    ],
    "every step waits for the GPU": [
        "unit/pipelines/training/test_loop.py::test_no_step_and_no_batch_makes_the_host_wait",
        "unit/core/tasks/test_step.py::test_a_step_never_asks_the_device_for_a_value",
        "unit/test_traps.py::test_nothing_asks_the_gpu_to_synchronise",
    ],
    "TF32 changes exact results": [
        "unit/core/retrieval/test_devices.py::test_search_and_figures_are_those_of_the_cpu_where_tf32_is_allowed",
    ],
    "a worker takes a GPU that was not given to it": [
        "unit/test_traps.py::test_workers_take_the_devices_of_the_plan",
        "unit/pipelines/runtime/test_device.py::test_a_worker_without_a_gpu_of_ray_computes_on_the_cpu",
    ],
    # Of exported models; there is one way to export, the registered model.
    "normalisation is applied twice": [
        "unit/test_traps.py::test_training_and_embedding_normalise_alike",
        "component/test_pipeline.py::test_the_registered_model_embeds_encoded_images",
    ],
    "a failing test does not fail CI": [
        "system/test_architecture.py::test_a_failing_step_fails_ci",
    ],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_its_test(trap: str) -> None:
    for test in TRAPS[trap]:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test


@pytest.mark.parametrize("batch", [1, 3, 4, 12])
def test_prompt_batches_that_divide_the_images_leave_no_empty_one(batch: int) -> None:
    task = prompt_task(f"prompts.batch={batch}", "prompts.epochs=2", rows=12)
    sizes = [len(step["rows"]) for step in task.batches(0)]
    assert sizes == [batch] * (2 * 12 // batch) and task.steps_per_epoch == 12 // batch


def product() -> dict[str, str]:
    files = (*ROOT.glob("dpmpp_core/**/*.py"), *ROOT.glob("pipelines/**/*.py"))
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def test_torch_load_never_runs_code_anywhere() -> None:
    for file, text in product().items():
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "weights_only=True" in call, f"{file}: {call}"
        assert not re.search(
            r"import pickle|pickle\.load|allow_pickle|yaml\.(unsafe|full)", text
        ), file


def test_nothing_asks_the_gpu_to_synchronise() -> None:
    for file, text in product().items():
        assert not re.search(r"cuda\.synchronize|cudnn\.(benchmark|deterministic)", text), file


def test_workers_take_the_devices_of_the_plan() -> None:
    """`is_available` is asked where the plan is made alone."""
    asked = {file for file, text in product().items() if "cuda.is_available" in text}
    assert asked == {"pipelines/runtime/device.py"}


def test_building_a_model_on_the_cpu_leaves_cuda_alone() -> None:
    for file, text in product().items():
        assert text.count("fork_rng(") == text.count("fork_rng(devices=[])"), file


def test_a_half_upload_is_gone_before_the_next_begins(tmp_path: Path) -> None:
    """In a store of objects, which cannot rename a folder; here in memory."""
    storage = Storage(str(tmp_path))
    store = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory")))
    storage.is_local, storage.filesystem = False, store
    storage.write("stages/a-1/weights.part2", b"of a worker that died")
    with storage.commit("stages/a-1") as (folder, marker):
        (folder / "weights").write_text("whole")
        marker["made"] = True
        assert storage.marker("stages/a-1") is None
    left = store.get_file_info(fs.FileSelector(storage.path("stages/a-1")))
    assert sorted(info.base_name for info in left) == [MARKER, "weights"]


def test_training_and_embedding_normalise_alike() -> None:
    task, data = prompt_task(), config().data
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 4, 3), np.uint8)
    embedding = to_tensor_batch(images, data.mean, data.std)
    torch.testing.assert_close(task.normalise(torch.from_numpy(images)), embedding)
