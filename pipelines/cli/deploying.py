"""Commands that render and check manifests, and start and follow jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.help_pages import examples
from pipelines.cli.options import Json, run_command

deploy_app = typer.Typer(
    help="Manifests of infra/k8s on KubeRay, and jobs on a cluster.", no_args_is_help=True
)

Overlay = Annotated[str, typer.Option("--overlay", help="One of infra/k8s/overlays, or a folder.")]
Manifests = Annotated[Path, typer.Option("--manifests", help="Folder that holds overlays/.")]
Crds = Annotated[
    Path | None, typer.Option("--crds", envvar="KUBERAY_CRDS", help="Folder of KubeRay's CRDs.")
]
JobAddress = Annotated[
    str | None,
    typer.Option("--address", help="Jobs API, http://head:8265. Default: Kubernetes' API."),
]
Namespace = Annotated[str, typer.Option("--namespace", help="Of Kubernetes.")]
Context = Annotated[str | None, typer.Option("--context", help="Of kubectl's configuration.")]
MANIFESTS_FOLDER = Path("infra/k8s")
DEFAULT_NAMESPACE = "dpmpp"


@deploy_app.command(
    epilog=examples(
        "dpmpp deploy render --overlay gpu | kubectl apply -f -",
        "dpmpp deploy render --overlay MY/OVERLAY > objects.yaml",
    )
)
def render(overlay: Overlay = "local", manifests: Manifests = MANIFESTS_FOLDER) -> None:
    """Print the objects of an overlay, for kubectl apply."""

    def work() -> dict[str, Any]:
        from pipelines.deploy.render import dump_yaml, render_overlay

        return {"text": dump_yaml(render_overlay(manifests, overlay))}

    run_command(work, lambda result: typer.echo(result["text"], nl=False), False)


@deploy_app.command(
    epilog=examples(
        "dpmpp deploy validate",
        "dpmpp deploy validate --overlay gpu --crds kuberay/crds",
        "dpmpp deploy validate --overlay gpu --server --context MY-CLUSTER",
    )
)
def validate(
    overlay: Annotated[
        str | None, typer.Option("--overlay", help="One overlay. Default: all of them.")
    ] = None,
    manifests: Manifests = MANIFESTS_FOLDER,
    crds: Crds = None,
    server: Annotated[
        bool, typer.Option("--server", help="Let the API server check all pods too (dry run).")
    ] = False,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Check overlays: schemas, the operator's rules, ours, pods, resources for config.yaml."""

    def work() -> dict[str, Any]:
        from pipelines.deploy.check import find_problems, resolve_crds_folder
        from pipelines.deploy.render import (
            get_overlay_namespace,
            list_overlays,
            render_overlay,
        )

        folder = resolve_crds_folder(crds)
        checked = {}
        for name in [overlay] if overlay else list_overlays(manifests):
            objects = render_overlay(manifests, name)
            found = find_problems(objects, folder)
            if server and not found:
                from pipelines.deploy.kube import Kubernetes

                target = Kubernetes(get_overlay_namespace(objects, None), context)
                found = target.find_refused_pods(objects)
            problems = [str(problem) for problem in found]
            checked[name] = {"objects": len(objects), "problems": problems}
        failed = any(one["problems"] for one in checked.values())
        return {"overlays": checked, "crds": str(folder) if folder else None, "failed": failed}

    def show(result: dict[str, Any]) -> None:
        for name, checked in result["overlays"].items():
            count = len(checked["problems"])
            wrong = f"{count} problem(s)" if count else "fine"
            typer.echo(f"{name}: {checked['objects']} objects, {wrong}")
            for problem in checked["problems"]:
                typer.echo(f"  {problem}")
        if result["crds"] is None:
            typer.echo("KubeRay's own schemas were not given: --crds FOLDER, or KUBERAY_CRDS")

    run_command(work, show, as_json)


@deploy_app.command(
    epilog=examples(
        "dpmpp deploy submit train --overlay gpu metric.epochs=30 --wait",
        "dpmpp deploy submit tune --overlay gpu -- --trials 40",
        "dpmpp deploy submit evaluate --address http://head:8265",
    )
)
def submit(
    job: Annotated[str, typer.Argument(help="prepare, train, tune, evaluate, promote, ...")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]... [-- OPTION...]",
            help="Configuration values to change; after `--` further options of the job's command.",
        ),
    ] = None,
    overlay: Overlay = "local",
    manifests: Manifests = MANIFESTS_FOLDER,
    address: JobAddress = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="Of Kubernetes. Default: the overlay's.")
    ] = None,
    context: Context = None,
    applied: Annotated[
        bool, typer.Option("--applied", help="The template on the cluster, not an overlay's.")
    ] = False,
    owner: Annotated[
        str | None, typer.Option("--owner", help="NAME/UID of the Job that it belongs to.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Start a job of an overlay; the same submission twice is one job."""

    def work() -> dict[str, Any]:
        from pipelines.deploy import jobs, kube
        from pipelines.deploy.check import check_words
        from pipelines.deploy.render import get_object, get_overlay_namespace, render_overlay

        belongs = jobs.Owner.parse(owner) if owner else None
        target: Any
        ended: tuple[str, ...]
        if applied:
            target = kube.Kubernetes(namespace or DEFAULT_NAMESPACE, context)
            objects = target.read_applied(job)
            check_words(objects, overrides or [])
        else:
            objects = render_overlay(manifests, overlay)
            check_words(objects, overrides or [])
            own = get_overlay_namespace(objects, namespace)
            target = jobs.RayCluster(address) if address else kube.Kubernetes(own, context)
        ready = jobs.build_job(objects, job, overrides or [], belongs)
        if isinstance(target, jobs.RayCluster):
            status, ended = target.submit(ready), jobs.ENDED_STATES
        else:
            versions = get_object(objects, "ConfigMap", "dpmpp-versions")["data"]
            status = target.submit(ready, objects, versions["KUBERAY_VERSION"])
            ended = kube.ENDED_STATES
        if wait:
            status |= kube.wait_until_ended(lambda: target.status(status["job"]), ended)
        return status | {"failed": status["status"] in ("FAILED", "Failed", "STOPPED")}

    run_command(work, _print_status, as_json)


@deploy_app.command(
    epilog=examples("dpmpp deploy status", "dpmpp deploy status JOB --address http://head:8265")
)
def status(
    name: Annotated[str | None, typer.Argument(help="Default: every job.")] = None,
    address: JobAddress = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Show the status of a job."""

    def work() -> dict[str, Any]:
        target = _connect_target(address, namespace, context)
        return {"jobs": [target.status(name)] if name else target.list()}

    def show(result: dict[str, Any]) -> None:
        for one in result["jobs"]:
            _print_status(one)

    run_command(work, show, as_json)


@deploy_app.command(epilog=examples("dpmpp deploy logs JOB", "dpmpp deploy logs JOB --follow"))
def logs(
    name: Annotated[str, typer.Argument(help="As `status` names it.")],
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
    address: JobAddress = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    context: Context = None,
) -> None:
    """Print what a job printed."""

    def work() -> dict[str, Any]:
        out = sys.stderr  # what `run_command` leaves open while work runs

        def write(text: str) -> None:
            print(text, end="", file=out, flush=True)

        _connect_target(address, namespace, context).logs(name, follow, write)
        return {}

    run_command(work, lambda result: None, False)


@deploy_app.command(
    epilog=examples("dpmpp deploy stop JOB", "dpmpp deploy stop JOB --namespace dpmpp")
)
def stop(
    name: Annotated[str, typer.Argument(help="As `status` names it.")],
    address: JobAddress = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """End a job. Its results stay, and the same submission continues from there."""
    run_command(
        lambda: _connect_target(address, namespace, context).stop(name), _print_status, as_json
    )


def _connect_target(address: str | None, namespace: str, context: str | None) -> Any:
    if address:
        from pipelines.deploy.jobs import RayCluster

        return RayCluster(address)
    from pipelines.deploy.kube import Kubernetes

    return Kubernetes(namespace, context)


def _print_status(status: dict[str, Any]) -> None:
    note = " (was there already)" if status.get("found") else ""
    message = f": {status['message']}" if status.get("message") else ""
    typer.echo(f"{status['job']}: {status['status']}{note}{message}")
