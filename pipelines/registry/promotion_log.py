"""Move the champion: one promoter at a time, and never half.

MLflow sets one alias per transaction, not two. Therefore:

- *The alias `champion` is the commit point.* It is moved in one call, so there is one champion at
  any time. `previous` is set before it; the promotion log keeps its old value.
- *The log is a registered model*, NAME.promotions. Each version of it is a ticket, whose tags
  describe the move. The database numbers versions without gaps or duplicates, so tickets form a
  queue in the same store as the aliases. A tag or an alias of MLflow cannot be a lock: both are set
  without comparing the old value.
- *The lowest open ticket may move.* A promoter closes its own ticket and raises if a lower one is
  open and, by the registry's clock, not older than `lease` seconds.
- *An older open ticket is a dead promoter's.* The next promoter repairs it: if the champion has
  moved, the promotion is done; if not, `previous` gets its old value back.
- A holder that is late by its own clock, started before its ticket was created, moves nothing.
- *Only what was checked is moved.* Under the ticket the aliases must be those that the gate read.

One gap is left: a holder that stops for the whole lease between its check of the clock and the
call, and then continues. There is still one champion, which passed its gate; the holder finds its
ticket closed by another promoter and raises.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines.registry.client import CHAMPION, PREVIOUS, Registry
from pipelines.runtime.environment import describe_owner

LEASE_SECONDS = 180.0  # a move takes one or two, a call is given up after 60
MARGIN_SECONDS = 70.0  # before the lease ends, in which no further call is started
STATE, OPEN, DONE, UNDONE, LOST = "state", "open", "done", "undone", "lost"
PROMOTE, ROLLBACK, REPAIR = "promote", "rollback", "repair"
ROLLED_BACK, PROMOTED = "dpmpp.rolled_back", "dpmpp.promoted"

log = logging.getLogger(__name__)


class PromotionConflictError(Exception):
    """Another promotion is under way, or was faster; nothing was changed."""


@dataclass(frozen=True)
class Move:
    """The move of a ticket: version numbers, None = no version."""

    action: str
    champion: int | None
    previous: int | None
    to: int | None

    def to_tags(self) -> dict[str, str]:
        """Return the tags of its ticket."""
        return {key: str(value or "") for key, value in vars(self).items()}

    @classmethod
    def from_ticket(cls, ticket: ModelVersion) -> Move:
        """Return the move that the tags of a ticket describe."""
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

    def open_tickets(self) -> list[ModelVersion]:
        """Return the tickets that are not closed, lowest first."""
        query = f"name = '{self.name}' and tags.`{STATE}` = '{OPEN}'"
        tickets = self._client.search_model_versions(query)
        return sorted(tickets, key=lambda ticket: int(ticket.version))

    def repair(self) -> None:
        """Complete or undo each promotion whose process died; without one, do nothing.

        An open ticket older than `lease` seconds by the registry's clock is a dead promoter's. If
        the champion has moved, its promotion is completed. If not, `previous` gets its old value
        back, where the promotion had changed it. Each repair is logged as a warning.

        Raises:
            PromotionConflictError: an open ticket is not older than `lease`. Its promoter may be
                alive or have died just now. Older tickets are repaired all the same.
            MlflowException: the registry does not answer, or refuses a request.
        """
        left = self.open_tickets()
        if left:
            ticket, _ = self._acquire_ticket(Move(REPAIR, None, None, None), str(left[0].source))
            self._close_ticket(ticket, DONE)

    def apply(self, move: Move) -> None:
        """Set `champion` to `move.to`, and `previous` to the champion before.

        Raises:
            PromotionConflictError: another promotion is under way, or the aliases are no longer
                `move.champion` and `move.previous`.
        """
        ticket, deadline = self._acquire_ticket(move, f"models:/{self._registry.name}/{move.to}")
        now = self._registry.aliases()
        if (now.get(CHAMPION), now.get(PREVIOUS)) != (move.champion, move.previous):
            self._close_ticket(ticket, LOST)
            raise PromotionConflictError(
                "another promotion was faster: the champion is "
                f"{_format_version(now.get(CHAMPION))} now, it was "
                f"{_format_version(move.champion)} at the checks; promote again"
            )
        if move.champion is not None:
            self._check_deadline(ticket, deadline)
            self._registry.set_alias(PREVIOUS, move.champion)
        self._check_deadline(ticket, deadline)
        self._registry.set_alias(CHAMPION, move.to)
        self._tag_versions(move)
        state = self._client.get_model_version(self.name, ticket.version).tags[STATE]
        if state != OPEN:
            raise PromotionConflictError(
                f"this promotion stood still for more than {self._lease:.0f} s and was taken for "
                f"dead ({state}); check the champion, and promote again"
            )
        self._close_ticket(ticket, DONE)

    def _acquire_ticket(self, move: Move, source: str) -> tuple[ModelVersion, float]:
        """Return a ticket that is the lowest open one, and its deadline (monotonic seconds)."""
        deadline = time.monotonic() + self._lease
        ticket = self._create_ticket(move, source)
        for other in self.open_tickets():
            if int(other.version) >= int(ticket.version):
                break
            if other.tags["id"] == ticket.tags["id"]:
                self._close_ticket(other, UNDONE)  # the response was lost and the call was retried
                continue
            age = (ticket.creation_timestamp - other.creation_timestamp) / 1000
            if age <= self._lease:
                self._close_ticket(ticket, LOST)
                raise PromotionConflictError(
                    f"another promotion is under way: {other.tags['action']} of version "
                    f"{other.tags['to'] or '-'} by {other.tags['owner']}, started {age:.0f} s ago. "
                    f"If that process is dead, promote again in {self._lease - age:.0f} s"
                )
            self._repair_ticket(other)
        return ticket, deadline

    def _create_ticket(self, move: Move, source: str) -> ModelVersion:
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
            tags={STATE: OPEN, "owner": describe_owner(), "id": uuid.uuid4().hex, **move.to_tags()},
        )

    def _repair_ticket(self, ticket: ModelVersion) -> None:
        """Complete a dead promoter's move if the champion has moved; else restore `previous`."""
        move = Move.from_ticket(ticket)
        now = self._registry.aliases()
        champion, previous = now.get(CHAMPION), now.get(PREVIOUS)
        if move.to is not None and champion == move.to:
            self._tag_versions(move)
            state = DONE
        else:
            if champion is not None and champion == move.champion == previous:
                self._registry.set_alias(PREVIOUS, move.previous)
            state = UNDONE
        self._close_ticket(ticket, state)
        log.warning(
            "%s of version %s by %s was left unfinished: now %s",
            move.action, move.to or "-", ticket.tags["owner"], state,
        )  # fmt: skip

    def _tag_versions(self, move: Move) -> None:
        """Tag the versions of a move that is done."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if move.action == PROMOTE and move.to is not None:
            self._registry.set_tag(move.to, PROMOTED, now)
        if move.action == ROLLBACK and move.to is not None:
            if move.champion is not None:  # else it was deleted
                self._registry.set_tag(move.champion, ROLLED_BACK, f"{now} by {describe_owner()}")
            self._registry.set_tag(move.to, ROLLED_BACK, "")  # it may have been rolled back before

    def _close_ticket(self, ticket: ModelVersion, state: str) -> None:
        self._client.set_model_version_tag(self.name, ticket.version, STATE, state)

    def _check_deadline(self, ticket: ModelVersion, deadline: float) -> None:
        if time.monotonic() > deadline - min(MARGIN_SECONDS, self._lease / 2):
            raise PromotionConflictError(
                f"the registry answers too slowly: ticket {ticket.version} of {self.name} ran out "
                "before the champion was moved; the next promotion repairs it"
            )


def _format_version(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
