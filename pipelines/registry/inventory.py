"""Which models a user can name here: the package's own, those of a storage, registered ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from dpmpp_core.config import load_config
from dpmpp_core.errors import DataError
from dpmpp_core.models.sources import CARD_FILE, GRAPH_SUFFIX, NAME, SHIPPED
from dpmpp_core.models.weights import RECIPES
from pipelines.registry.references import get_registry_uri
from pipelines.runtime.storage import Storage, sqlite_file

TRAINING_STAGES = ("metric", "pretrain")


@dataclass(frozen=True)
class NamedModel:
    """A model and the name by which every `--model` takes it.

    Attributes:
        name: What to type.
        kind: shipped, run, stage, onnx or registered.
        trained_on: The data in a few words; empty = not known.
        date: When it was written, as 2026-11-30; empty = not known.
        mAP: By query set, with masks, in [0, 1]; without those that are not known.
        aliases: Of a registered version.
        weights_sha256: As in the model's card; empty = not known.
    """

    name: str
    kind: str
    trained_on: str = ""
    date: str = ""
    mAP: Mapping[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    weights_sha256: str = ""


def list_models(storage_uri: str, tracking_uri: str | None = None) -> list[NamedModel]:
    """List the package's own model, those of the storage, and the registered versions.

    Args:
        storage_uri: Where runs and stages are; a folder that is missing holds none.
        tracking_uri: The registry; None = where names `models:/...` are looked up.

    Raises:
        UserError: the storage or the registry does not answer.
    """
    stored = list(_list_stored(Storage(storage_uri)))
    by_weights = {model.weights_sha256: model for model in reversed(stored)}
    registered = list(_list_registered(tracking_uri or get_registry_uri(), by_weights))
    return [_describe_shipped(), *stored, *registered]


def _describe_shipped() -> NamedModel:
    backbone = load_config("demo").model.backbone
    card = json.loads((RECIPES / "weights" / f"{backbone}.json").read_text())
    people = f"drawn people: {card['identities']:,} persons, {card['images']:,} images"
    return NamedModel(SHIPPED, "shipped", people)


def _list_stored(storage: Storage) -> Iterator[NamedModel]:
    """Yield the models of runs, then those of stages that no run names, each with its graphs."""
    named = set()
    for run in storage.folders():
        model, key = _read_run(storage, run)
        if model is not None:
            named.add(key)
            yield model
            yield from _list_graphs(storage, key, model)
    for folder in storage.folders("stages"):
        key = f"stages/{folder}"
        trains = folder.partition("-")[0] in TRAINING_STAGES
        if trains and key not in named and storage.marker(key) is not None:
            card = storage.read_json(f"{key}/{NAME}/{CARD_FILE}")
            if card is not None:
                model = _read_stage(storage, key, card)
                yield model
                yield from _list_graphs(storage, key, model)


def _read_run(storage: Storage, run: str) -> tuple[NamedModel | None, str]:
    """Return the model that a run trained, if it is still there, and the key of its stage."""
    try:
        result = storage.read_json(f"{run}/result.json") or {}
        stages = {stage["name"]: stage["key"] for stage in result.get("stages", [])}
        key = next(stages[name] for name in TRAINING_STAGES if name in stages)
        counts = result["counts"]["train"]
        figures = {
            name: values["masked"]["mAP"] for name, values in result.get("metrics", {}).items()
        }
        sha256 = result["weights_sha256"]
    except (DataError, StopIteration, KeyError, TypeError, AttributeError):
        return None, ""  # not the folder of a run that trained a model
    if storage.marker(key) is None:
        return None, ""
    people = f"{counts['identities']:,} persons, {counts['images']:,} images"
    model = NamedModel(
        name=storage.short_location(run if storage.is_local else f"{key}/{NAME}"),
        kind="run",
        trained_on=f"{run.rpartition('-')[0]}: {people}",
        date=_date(storage.changed_at(f"{run}/result.json")),
        mAP=figures,
        weights_sha256=sha256,
    )
    return model, key


def _read_stage(storage: Storage, key: str, card: Mapping[str, Any]) -> NamedModel:
    people = f"{card['identities']:,} persons" if "identities" in card else ""
    return NamedModel(
        name=storage.short_location(key if storage.is_local else f"{key}/{NAME}"),
        kind="stage",
        trained_on=": ".join(filter(None, (card.get("config"), people))),
        date=_date(storage.changed_at(f"{key}/{NAME}/{CARD_FILE}")),
        weights_sha256=card.get("weights_sha256", ""),
    )


def _list_graphs(storage: Storage, key: str, model: NamedModel) -> Iterator[NamedModel]:
    for file in storage.files(f"{key}/{NAME}"):
        if file.endswith(GRAPH_SUFFIX):
            date = _date(storage.changed_at(file))
            yield replace(model, name=storage.short_location(file), kind="onnx", date=date)


def _list_registered(uri: str, by_weights: Mapping[str, NamedModel]) -> Iterator[NamedModel]:
    """Yield the versions of every registered model, the newest first; figures by the weights."""
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        return
    from pipelines.registry.client import WEIGHTS
    from pipelines.runtime.mlflow_checks import check_database, translate_errors
    from pipelines.runtime.tracking import open_client, without_login

    uri = without_login(uri)
    with translate_errors(uri):
        check_database(uri)
        client = open_client(uri)
        aliases = {model.name: model.aliases for model in client.search_registered_models()}
        versions = client.search_model_versions()
    for version in sorted(versions, key=lambda v: (v.name, -int(v.version))):
        if WEIGHTS not in version.tags:
            continue  # of another program
        own = tuple(a for a, n in aliases[version.name].items() if int(n) == int(version.version))
        same = by_weights.get(version.tags[WEIGHTS])
        yield NamedModel(
            name=f"models:/{version.name}/{version.version}",
            kind="registered",
            trained_on=same.trained_on if same else "",
            date=_date(datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)),
            mAP=same.mAP if same else {},
            aliases=own,
            weights_sha256=version.tags[WEIGHTS],
        )


def _date(when: datetime | None) -> str:
    return "" if when is None else when.date().isoformat()
