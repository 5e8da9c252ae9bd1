"""Moving the champion: one promoter at a time, and never half.

MLflow sets one alias in one transaction, and no two. So:

- *The alias `champion` is the commit point.* It is one pointer, moved in one call: there is one
  champion at any time, the old one or the new one. `previous` is written before it; what it said
  before stands in the journal.
- *The journal is a registered model*, NAME.promotions: a version of it is a ticket, whose tags say
  what is moved from where to where. The database numbers versions without gaps or doubles, so
  tickets are a queue in the very place where the aliases are; no promoter can miss it.
  Neither a tag nor an alias of MLflow can be a lock: both are set without comparing what was there.
- *The lowest open ticket may move.* Whoever finds a lower one open, and not older than `lease`
  seconds by the registry's own clock, closes its own and says so.
- *An older open ticket is a dead promoter's.* The next one repairs it: if the champion has moved,
  the promotion is done; if not, `previous` gets its old value back and it never was. A tag of the
  new champion in its place could not be half moved, but `models:/NAME@previous` would be gone.
- A holder that is late by its own clock, which began before its ticket did, moves nothing.
- *What was judged is what is moved.* Under the ticket the aliases must be those that the gate saw.

One gap is left: a holder that stops for the whole lease between looking at its clock and the call,
and then goes on. There is one champion then too, one that passed its gate; the holder finds its
ticket closed by others and says so.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines.registry.client import CHAMPION, PREVIOUS, Registry

LEASE_SECONDS = 180.0  # seconds; a move takes one or two, a call is given up after 60
MARGIN_SECONDS = 70.0  # seconds before the lease ends in which no further call is begun
STATE, OPEN, DONE, UNDONE, LOST = "state", "open", "done", "undone", "lost"
PROMOTE, ROLLBACK, REPAIR = "promote", "rollback", "repair"
ROLLED_BACK, PROMOTED = "dpmpp.rolled_back", "dpmpp.promoted"

log = logging.getLogger(__name__)


class PromotionConflictError(Exception):
    """Another promotion is under way, or was faster; nothing was changed."""


@dataclass(frozen=True)
class Move:
    """What a ticket is for; None = no version."""

    action: str
    champion: int | None
    previous: int | None
    to: int | None

    def tags(self) -> dict[str, str]:
        said = {"action": self.action, "champion": self.champion, "previous": self.previous}
        return {key: str(value or "") for key, value in (said | {"to": self.to}).items()}

    @classmethod
    def of(cls, ticket: ModelVersion) -> Move:
        numbers = (ticket.tags.get(key) for key in ("champion", "previous", "to"))
        return cls(ticket.tags["action"], *(int(n) if n else None for n in numbers))


class PromotionLog:
    """The tickets of one registered model.

    Args:
        lease: seconds after which an open ticket counts as a dead promoter's.
    """

    def __init__(self, registry: Registry, lease: float = LEASE_SECONDS) -> None:
        self._registry, self._lease = registry, lease
        self._client = registry.client
        self.name = f"{registry.name}.promotions"

    def open(self) -> list[ModelVersion]:
        """Tickets that nobody closed, lowest first."""
        query = f"name = '{self.name}' and tags.`{STATE}` = '{OPEN}'"
        found = self._client.search_model_versions(query)
        return sorted(found, key=lambda ticket: int(ticket.version))

    def repair(self) -> None:
        """End what a dead promoter left. Raises Lost if a living one is at work."""
        left = self.open()
        if left:
            ticket, _ = self._take(Move(REPAIR, None, None, None), str(left[0].source))
            self._close(ticket, DONE)

    def move(self, move: Move) -> None:
        """Let `champion` point at `move.to`, and `previous` at what it pointed at.

        Raises:
            Lost: another promotion is under way, or the aliases are no longer `move.champion` and
                `move.previous`.
        """
        ticket, deadline = self._take(move, f"models:/{self._registry.name}/{move.to}")
        now = self._registry.aliases()
        if (now.get(CHAMPION), now.get(PREVIOUS)) != (move.champion, move.previous):
            self._close(ticket, LOST)
            raise PromotionConflictError(
                f"another promotion was faster: the champion is {_format_version(now.get(CHAMPION))} now, "
                f"it was {_format_version(move.champion)} when this one was judged; promote again"
            )
        if move.champion is not None:
            self._in_time(ticket, deadline)
            self._registry.point(PREVIOUS, move.champion)
        self._in_time(ticket, deadline)
        self._registry.point(CHAMPION, move.to)
        self._record(move)
        state = self._client.get_model_version(self.name, ticket.version).tags[STATE]
        if state != OPEN:
            raise PromotionConflictError(
                f"this promotion stood still for more than {self._lease:.0f} s and was taken for "
                f"dead ({state}); look at the champion, and promote again"
            )
        self._close(ticket, DONE)

    def _take(self, move: Move, source: str) -> tuple[ModelVersion, float]:
        """A ticket that is the lowest open one, and the time (monotonic) when it is over."""
        deadline = time.monotonic() + self._lease
        ticket = self._new(move, source)
        for other in self.open():
            if int(other.version) >= int(ticket.version):
                break
            if other.tags["id"] == ticket.tags["id"]:
                self._close(other, UNDONE)  # made too: the answer was lost, the call made again
                continue
            age = (ticket.creation_timestamp - other.creation_timestamp) / 1000
            if age <= self._lease:
                self._close(ticket, LOST)
                raise PromotionConflictError(
                    f"another promotion is under way: {other.tags['action']} of version "
                    f"{other.tags['to'] or '-'} by {other.tags['owner']}, begun {age:.0f} s ago. "
                    f"If that process is dead, promote again in {self._lease - age:.0f} s"
                )
            self._repair(other)
        return ticket, deadline

    def _new(self, move: Move, source: str) -> ModelVersion:
        try:
            self._client.create_registered_model(
                self.name, description=f"The journal of promotions of {self._registry.name}"
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self._client.create_model_version(
            self.name,
            source=source,
            tags={STATE: OPEN, "owner": describe_owner(), "id": uuid.uuid4().hex, **move.tags()},
        )

    def _repair(self, ticket: ModelVersion) -> None:
        """The champion says whether a dead promoter's move was done; `previous` follows it."""
        move = Move.of(ticket)
        now = self._registry.aliases()
        champion, previous = now.get(CHAMPION), now.get(PREVIOUS)
        if move.to is not None and champion == move.to:
            self._record(move)
            state = DONE
        else:
            if champion is not None and champion == move.champion == previous:
                self._registry.point(PREVIOUS, move.previous)
            state = UNDONE
        self._close(ticket, state)
        log.warning(
            "%s of version %s by %s was left unfinished: now %s",
            move.action, move.to or "-", ticket.tags["owner"], state,
        )  # fmt: skip

    def _record(self, move: Move) -> None:
        """What is known of versions once the champion has moved."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if move.action == PROMOTE and move.to is not None:
            self._registry.tag(move.to, PROMOTED, now)
        if move.action == ROLLBACK and move.champion is not None and move.to is not None:
            self._registry.tag(move.champion, ROLLED_BACK, f"{now} by {describe_owner()}")
            self._registry.tag(move.to, ROLLED_BACK, "")  # as it may have been itself

    def _close(self, ticket: ModelVersion, state: str) -> None:
        self._client.set_model_version_tag(self.name, ticket.version, STATE, state)

    def _in_time(self, ticket: ModelVersion, deadline: float) -> None:
        if time.monotonic() > deadline - min(MARGIN_SECONDS, self._lease / 2):
            raise PromotionConflictError(
                f"the registry answers too slowly: ticket {ticket.version} of {self.name} ran out "
                "before the champion was moved; the next promotion repairs what was begun"
            )


def describe_owner() -> str:
    """Who promotes: user, host and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def _format_version(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
