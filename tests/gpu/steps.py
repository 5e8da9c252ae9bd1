"""Training steps: right, without waits, fast, small in memory, the same twice and resumed."""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dpmpp_core.tasks.step import train_step
from dpmpp_core.tasks.task import Task
from tests.bench.stage2_step import plain_losses
from tests.gpu.setting import Row, Setting, stepper
from tests.support.emulated_cuda import emulated_cuda
from tests.support.kernels import CountKernels

KINDS = ("metric", "saliency", "prompts", "pretrain")
ALLOWED_WAITS = {"pretrain": 1}  # it counts the identities of the batch


def check_correct(setting: Setting) -> Row:
    """Compare losses and gradients of a demo step with those of a CPU in float32."""
    row = Row()
    config = setting.demo_config("metric.precision=fp32")
    batch = setting.people_batch(config)
    people = int(batch["labels"].max()) + 1
    reference = _gradients(Setting(torch.device("cpu"), setting.small, setting.folder),
                           "fp32", batch, people)  # fmt: skip
    cases = {"fp32": (1e-3, "fp32", True), "fp32_cudnn_ieee": (1e-5, "fp32", False),
             "bf16": (2e-2, "bf16", True)}  # fmt: skip
    for name, (bound, precision, tf32) in cases.items():
        with torch.backends.cudnn.flags(allow_tf32=tf32):
            losses, gradient = _gradients(setting, precision, batch, people)
        difference = (gradient - reference[1]).norm() / reference[1].norm()
        of_losses = max(abs(losses[n] - x) / max(1e-6, abs(x)) for n, x in reference[0].items())
        row.figures[name] = {"gradient": float(difference), "losses": of_losses}
        row.require(float(difference) <= bound, f"{name}: gradients differ by more than {bound}")
    return row


def _gradients(
    setting: Setting, precision: str, batch: dict[str, Tensor], people: int
) -> tuple[dict[str, float], Tensor]:
    task = setting.metric_task(setting.demo_config(f"metric.precision={precision}"), people)
    losses, _ = task(setting.on_device(batch))
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad.float().flatten().cpu() for p in task.parameters() if p.grad is not None]
    return {n: x.item() for n, x in losses.items()}, torch.cat(gradients)


def check_waits(setting: Setting) -> Row:
    """Count the operations of a batch copy and a step for which the host waits."""
    row = Row({"emulated": not setting.cuda})
    for kind in KINDS:
        with _waits(setting) as (waits, device):
            there = Setting(device, setting.small, setting.folder)
            task, batch = there.task(kind)
            optimiser = task.optimiser()
            for step in range(2):
                waits.clear()  # the first step creates the optimiser's state
                on_device = there.on_device(batch)
                copied = len(waits)
                train_step(task, task, optimiser, on_device, step)
        row.figures[kind] = {"copy": copied, "step": len(waits) - copied, "where": waits[:3]}
        row.require(copied == 0, f"{kind}: {copied} waits in the copy of a batch")
        allowed = ALLOWED_WAITS.get(kind, 0)
        row.require(len(waits) - copied <= allowed, f"{kind}: waits in a step: {waits[:3]}")
    return row


@contextmanager
def _waits(setting: Setting) -> Iterator[tuple[list[str], torch.device]]:
    """Record waits as torch reports them, or on an emulated device."""
    if not setting.cuda:
        with emulated_cuda() as mode:
            yield mode.waits, torch.device("cuda", 0)
        return
    seen: list[str] = []

    def record(message: Any, category: Any, file: str, line: int, *_: Any) -> None:
        if "synchroniz" in str(message):
            seen.append(f"{file}:{line}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = record  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen, setting.device
        finally:
            torch.cuda.set_sync_debug_mode("default")


def check_step(setting: Setting) -> Row:
    """Time stage 2 next to a plain CLIP-ReID step, a timm ViT, torch.compile and a CUDA graph."""
    row, config = Row(), setting.config()
    people = setting.size(751, 8)
    batch = setting.on_device(setting.random_batch(config, people))
    images = len(batch["images"])
    calls: dict[str, Callable[[], Any]] = {"ours": stepper(setting.metric_task(config, people),
                                                           batch)}  # fmt: skip
    paper = setting.config("model.bands=0", "model.mask_generator=light",
                           "model.attention_mask_depth=null")  # fmt: skip
    if not setting.small:
        calls["plain"] = _plain_stepper(setting.metric_task(paper, people), batch)
        calls["timm"] = _timm_stepper(setting, batch)
    if setting.cuda:
        compiled = setting.metric_task(setting.config("metric.compile=true"), people)
        compiled.compile_parts()
        calls["compiled"] = stepper(compiled, batch)
    for name, call in calls.items():
        row.figures[name] = _time_step(setting, call, images)
    if setting.cuda:
        row.figures["graph"] = _time_graph(setting, setting.metric_task(config, people), batch)
    if "plain" in calls:
        ours, plain = row.figures["ours"], row.figures["plain"]
        row.figures["ours_by_plain"] = round(ours["ms"] / plain["ms"], 3)
        if setting.cuda:
            busy = ours["busy_ms"] / plain["busy_ms"]
            row.figures["ours_by_plain_busy"] = round(busy, 3)
            row.expect(busy <= 1.35, f"ours takes {busy:.2f} of the GPU time of a plain step")
    return row


def _time_step(setting: Setting, call: Callable[[], Any], images: int) -> dict[str, Any]:
    rounds = setting.size(20, 1)
    seconds = setting.seconds(call, rounds, warm=setting.size(5, 1))
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    setting.wait()
    with FlopCounterMode(display=False) as counter:
        call()
    flops = counter.get_total_flops()
    figures: dict[str, Any] = {
        "ms": round(1e3 * seconds, 2), "host_ms": round(1e3 * host, 2),
        "images_a_second": round(images / seconds, 1), "tflop": round(flops / 1e12, 3),
        "tflop_a_second": round(flops / seconds / 1e12, 2),
    }  # fmt: skip
    if setting.cuda:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            setting.wait()
        events = [e for e in profiler.events() if e.device_type.name == "CUDA"]
        figures |= {"kernels": len(events),
                    "busy_ms": round(sum(e.device_time for e in events) / 1e3, 2)}  # fmt: skip
    else:
        with CountKernels() as kernels:  # where there is no profiler of a GPU
            call()
        figures["operations"] = kernels.count
    return figures


def _plain_stepper(task: Any, batch: dict[str, Tensor]) -> Callable[[], None]:
    """CLIP-ReID's second stage on the same tower."""
    optimiser = task.optimiser()

    def step() -> None:
        optimiser.zero_grad()
        plain_losses(task, batch).backward()
        optimiser.step()

    return step


def _timm_stepper(setting: Setting, batch: dict[str, Tensor]) -> Callable[[], None]:
    """timm's ViT-B/16 with fused queries, keys and values: the least that a step can take."""
    model = timm.create_model("vit_base_patch16_224", img_size=(256, 128), num_classes=751)
    model = model.to(setting.device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    pixels = batch["images"].permute(0, 3, 1, 2).float().div(255).sub(0.5)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(setting.device.type, torch.bfloat16):
            logits = model(pixels)
        torch.nn.functional.cross_entropy(logits.float(), batch["labels"]).backward()
        optimiser.step()

    return step


def _time_graph(setting: Setting, task: Task, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Time one CUDA graph of losses and gradients; the update is left out."""

    def compute() -> None:
        task.zero_grad(set_to_none=False)
        losses, _ = task(batch)
        torch.stack(list(losses.values())).sum().backward()

    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compute()
        return {"ms": round(1e3 * setting.seconds(graph.replay, 20), 2)}
    except RuntimeError as error:
        return {"not captured": str(error).splitlines()[0][:200]}


def check_stages(setting: Setting) -> Row:
    """Time the steps of the other stages."""
    row = Row()
    for kind in KINDS:
        task, batch = setting.task(kind)
        call = stepper(task, setting.on_device(batch))
        row.figures[f"{kind}_ms"] = round(1e3 * setting.seconds(call, setting.size(10, 1)), 2)
    if setting.cuda:
        ratio = row.figures["saliency_ms"] / row.figures["metric_ms"]
        row.expect(2.2 <= ratio <= 2.6, f"stage 0 takes {ratio:.2f} of stage 2, not 2.2 to 2.6")
        prompts = row.figures["prompts_ms"]
        row.expect(prompts <= 6, f"a step of stage 1 takes {prompts} ms")
    return row


def check_memory(setting: Setting) -> Row:
    """Measure the memory of a step: its peak on a GPU, on a CPU what is kept for gradients."""
    row = Row()
    for kind, parts in (("metric", 1), ("metric", 4), ("saliency", 1)):
        if kind == "metric":
            config = setting.config(f"metric.accumulate={parts}")
            people = setting.size(751, 8)
            task: Task = setting.metric_task(config, people)
            batch = setting.random_batch(config, people)
        else:
            task, batch = setting.task(kind)
        name = f"{kind}_accumulate_{parts}_gb"
        row.figures[name] = round(_step_bytes(setting, task, batch) / 1e9, 3)
        del task
    if setting.cuda:
        stage2, stage0 = (row.figures[f"{k}_accumulate_1_gb"] for k in ("metric", "saliency"))
        row.expect(5 <= stage2 <= 6.5, f"stage 2 takes {stage2} GB, not 5 to 6.5")
        row.expect(10.5 <= stage0 <= 11.5, f"stage 0 takes {stage0} GB, not 10.5 to 11.5")
    return row


def _step_bytes(setting: Setting, task: Task, batch: dict[str, Tensor]) -> float:
    call = stepper(task, setting.on_device(batch))
    if setting.cuda:
        call()
        torch.cuda.reset_peak_memory_stats(setting.device)
        call()
        return torch.cuda.max_memory_allocated(setting.device)
    kept: dict[int, int] = {}
    most = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal most
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        most = max(most, sum(kept.values()))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        call()
    return most


def check_same(setting: Setting) -> Row:
    """Train twice, and resume half-way from bytes; compare the weights."""
    row, config = Row(), setting.demo_config("metric.precision=auto")
    steps = setting.size(20, 4)
    maker = setting.step_maker(config)
    batches = [setting.people_batch_of(maker, step % 2) for step in range(steps)]
    for name, deterministic in (("plain", False), ("deterministic", True)):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        try:
            once = _train(setting, config, batches, None)
            twice = _train(setting, config, batches, None)
            resumed = _train(setting, config, batches, steps // 2)
        finally:
            torch.use_deterministic_algorithms(False)
        row.figures[name] = {"twice": _difference(once, twice),
                             "resumed": _difference(once, resumed)}  # fmt: skip
    exact = row.figures["deterministic" if setting.cuda else "plain"]
    row.require(not any(exact.values()), f"weights are not the same: {exact}")
    return row


def _train(
    setting: Setting, config: Any, batches: list, resume_at: int | None
) -> dict[str, Tensor]:
    """Train on the batches; at `resume_at` go on from a checkpoint in a new task."""
    people = setting.size(16, 8)
    task = setting.metric_task(config, people)
    optimiser = task.optimiser()
    for step, batch in enumerate(batches):
        if step == resume_at:
            data = io.BytesIO()
            torch.save({"task": task.trained_state(), "optimiser": optimiser.state_dict()}, data)
            state = torch.load(io.BytesIO(data.getvalue()), map_location="cpu", weights_only=True)
            task = setting.metric_task(config, people)
            optimiser = task.optimiser()
            task.load_trained_state(state["task"])
            optimiser.load_state_dict(state["optimiser"])
        torch.manual_seed(step)
        train_step(task, task, optimiser, setting.on_device(batch), step)
    return {n: x.detach().cpu().clone() for n, x in task.state_dict().items()}


def _difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((x.double() - b[n].double()).abs().max()) for n, x in a.items() if x.numel())


def check_checkpoint(setting: Setting) -> Row:
    """Time packing a state, load it from the CPU, go on; its state is then on the device."""
    row, config = Row(), setting.config()
    people = setting.size(751, 8)
    batch = setting.on_device(setting.random_batch(config, people))
    task = setting.metric_task(config, people)
    optimiser = task.optimiser()
    train_step(task, task, optimiser, batch, 0)
    setting.wait()
    start = time.perf_counter()
    data = io.BytesIO()
    torch.save({"task": task.trained_state(), "optimiser": optimiser.state_dict()}, data)
    row.figures["pack_s"] = round(time.perf_counter() - start, 3)
    row.figures["gigabytes"] = round(data.tell() / 1e9, 3)
    start = time.perf_counter()
    state = torch.load(io.BytesIO(data.getvalue()), map_location="cpu", weights_only=True)
    task.load_trained_state(state["task"])
    optimiser.load_state_dict(copy.copy(state["optimiser"]))
    row.figures["load_s"] = round(time.perf_counter() - start, 3)
    train_step(task, task, optimiser, batch, 1)
    moments = [x["exp_avg"] for x in optimiser.state.values()]
    there = all(x.device.type == setting.device.type for x in moments)
    row.require(there, "moments of Adam are not on the device after a load")
    row.expect(setting.small or row.figures["pack_s"] <= 1.5, "packing takes more than 1.5 s")
    return row
