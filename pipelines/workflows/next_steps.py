"""What to do with a trained model: commands with the real paths of its run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from dpmpp_core.data.manifest import Manifest
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import shorten_path
from pipelines.workflows.session import compute_run_name

UNDETECTED = "folders"  # the layout that no folder is recognised by


def list_next_steps(run: Run, done: Mapping[str, Stage]) -> list[dict[str, str]]:
    """Return the commands that follow a training, in order.

    Args:
        run: The finished run.
        done: Its stages by name, `prepare` and `metric` among them.

    Returns:
        `what` in words and `command`, ready for a shell.
    """
    manifest = Manifest.load(run.folder(done["prepare"]))
    storage, name = run.storage, compute_run_name(done["prepare"], run.config)
    model = storage.short_location(name if storage.is_local else f"{done['metric'].key}/model")
    index = storage.short_location(f"{name}/gallery") if storage.is_local else "gallery"
    root = manifest.root if "://" in manifest.root else shorten_path(manifest.root)
    part = ["--split", "gallery"]
    if manifest.layout == UNDETECTED:  # few persons: all of them can be searched
        part = ["--layout", UNDETECTED]
        part += ["--camera", run.config.data.camera] if run.config.data.camera else []
    query = next(iter(manifest.subset("query")["path"].to_pylist()), None)
    commands: dict[str, list[str]] = {}
    if "evaluate" not in done:
        layout = [f"data.layout={UNDETECTED}"] if manifest.layout == UNDETECTED else []
        commands["measure the model"] = ["evaluate", "--data", root, "--model", model, *layout]
    commands |= {
        "index its gallery, or any folder of photos": [
            "index", "build", "--index", index, "--data", root, *part, "--model", model,
        ],
        "search in it": [
            "search", "--index", index, "--query", f"{root}/{query or 'PICTURE.jpg'}",
            "--html", "page.html",
        ],
        "search on a page": ["app", "--index", index],
    }  # fmt: skip
    return [
        {"what": what, "command": shlex.join(["dpmpp", *words])} for what, words in commands.items()
    ]
