"""A server that gives seats, asked by POST with JSON (docs/policy.md has the whole protocol).

    POST URL/acquire  {"version": 1, "seat", "identity", "job", "host", "user"}
                      200 {"lease": "...", "renew": 20}    the seat is ours; renewed every so many seconds
                      409 {"reason", "holders": ["..."]}   all are taken
                      403 {"reason"}                       there is none for this job: expired, unknown
    POST URL/renew    {"version": 1, "lease"}   200 {}; 410 {"reason"}: lost; 403 as above
    POST URL/release  {"version": 1, "lease"}   200 {}
    GET  URL/status                             200 {"total": 4, "holders": ["..."]}

Any other answer, and none, means that it does not work at the moment.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from torpor.seats.provider import Lost, NoneFree, NotEntitled, Request, Status, Unreachable

TIMEOUT = 10.0
"""Seconds for an answer."""
EVERY = 20.0
_SELDOM = 86400.0
"""Seconds between two renewals at most, whatever the server says."""
_MOST = 1 << 20


class Http:
    """See provider.Provider."""

    def __init__(self, options: Mapping[str, Any], request: Request) -> None:
        self._url = str(options["url"]).rstrip("/")
        self._token_file, self._ca_file = options.get("token_file", ""), options.get("ca_file", "")
        self._request = request
        self._lease = ""
        self.every = EVERY

    def acquire(self) -> None:
        status, told = self._ask("acquire", self._request._asdict())
        if status == 409:
            holders = [str(each) for each in told.get("holders", ())]
            raise NoneFree(_reason(told, "all seats are taken") + (f": {'; '.join(holders)}" if holders else ""))
        if status != 200:
            raise self._failed(status, told)
        if not isinstance(told.get("lease"), str):
            raise Unreachable(f"{self._url} answers, but gives no lease")
        self._lease = told["lease"]
        renew = told.get("renew", EVERY)
        self.every = min(max(0.1, float(renew)), _SELDOM) if isinstance(renew, int | float) else EVERY

    def renew(self) -> None:
        status, told = self._ask("renew", {"lease": self._lease})
        if status == 410:
            raise Lost(_reason(told, f"{self._url} has given the seat to somebody else"))
        if status != 200:
            raise self._failed(status, told)

    def release(self) -> None:
        if self._lease:
            lease, self._lease = self._lease, ""
            status, told = self._ask("release", {"lease": lease})
            if status not in (200, 410):
                raise self._failed(status, told)

    def status(self) -> Status:
        status, told = self._ask("status", None)
        if status != 200:
            raise self._failed(status, told)
        return Status(int(told.get("total", 0)), tuple(str(each) for each in told.get("holders", ())))

    def fileno(self) -> int:
        return -1

    def _failed(self, status: int, told: Mapping[str, Any]) -> NotEntitled | Unreachable:
        if status == 403:
            return NotEntitled(_reason(told, f"{self._url} has no seat for this job"))
        return Unreachable(_reason(told, f"{self._url} answers with status {status}"))

    def _ask(self, what: str, body: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer. Raises Unreachable, NotEntitled."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token_file:
            try:
                with open(self._token_file, encoding="ascii") as file:
                    headers["Authorization"] = f"Bearer {file.read().strip()}"
            except (OSError, ValueError) as error:
                raise NotEntitled(
                    f"{self._token_file} cannot be read: {getattr(error, 'strerror', None) or error}"
                ) from None
        data = None if body is None else json.dumps({"version": 1, **body}).encode()
        asked = urllib.request.Request(f"{self._url}/{what}", data, headers)
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT, context=self._context()) as answer:
                return answer.status, _parsed(answer.read(_MOST))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(error.read(_MOST))
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(f"{self._url} does not answer: {reason}") from None

    def _context(self) -> Any:
        if not self._ca_file:
            return None
        import ssl

        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:
            raise NotEntitled(f"{self._ca_file} cannot be read: {error.strerror or error}") from None


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(told: Mapping[str, Any], otherwise: str) -> str:
    return str(told.get("reason") or otherwise)
