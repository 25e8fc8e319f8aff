"""What an item gets: rewards, or why there are none."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rewarded:
    """What an item got; N answers."""

    rewards: tuple[float, ...]  # N
    tokens: tuple[int, ...]  # N, of the sequences that were scored
    truncated: tuple[bool, ...]  # N
    notes: tuple[str, ...] = ()


class Refused(Exception):
    """A request, or one item of it, that gets no reward.

    Attributes:
      status: HTTP's: 400 the request is wrong, 413 too large or too long, 500 a fault of the model, 503 try again later.
      message: what is wrong and what to do.
      retry_after: seconds, with 503.
    """

    def __init__(self, status: int, message: str, retry_after: int = 0):
        super().__init__(status, message, retry_after)
        self.status, self.message, self.retry_after = status, message, retry_after

    def __str__(self) -> str:
        return self.message

    def body(self) -> Mapping[str, Any]:
        """As vLLM and OpenAI write errors."""
        return {
            "error": {"code": self.status, "type": KINDS.get(self.status, "invalid_request"), "message": self.message}
        }


Outcome = Rewarded | Refused
KINDS = {
    401: "unauthorized",
    408: "timeout",
    413: "too_large",
    499: "client_gone",
    500: "model_error",
    503: "overloaded",
}


def wrong(where: str, problem: str, remedy: str) -> Refused:
    """A 400 that names the field."""
    return Refused(400, f"{where} {problem}; {remedy}")
