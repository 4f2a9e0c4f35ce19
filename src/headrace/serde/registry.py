"""A client of a schema registry that speaks Confluent's interface, for reading only."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from headrace.errors import RetriableError, SettingsError
from headrace.settings import duration_ms

_MAX_BYTES = 4 * 1024 * 1024


class SchemaRegistry:
    """Schemas by their ids, from a Confluent-compatible registry over HTTP.

    A schema is fetched when the first record with its id comes, and kept: an id never changes what it means. Fetching
    holds the task up, for no longer than ``timeout``.

    Args:
        url: Where the registry is, such as ``https://registry:8081``.
        timeout: How long one request may take.
        auth: User and password for basic authentication.

    Raises:
        SettingsError: ``url`` is no HTTP address, or ``timeout`` no duration.

    Example:
        >>> SchemaRegistry("http://localhost:8081", timeout="2s").url
        'http://localhost:8081'
    """

    def __init__(self, url: str, *, timeout: str | timedelta = "5s", auth: tuple[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError("url of SchemaRegistry is no address", remedy='For example "http://localhost:8081"')
        if parts.username is not None:
            raise SettingsError("url of SchemaRegistry holds a password", remedy="Give auth=(user, password)")
        self.url = url.rstrip("/")
        self._seconds = duration_ms(timeout, "timeout of SchemaRegistry") / 1000
        if not self._seconds:
            raise SettingsError("timeout of SchemaRegistry must not be 0")
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if auth is not None:
            self._headers["Authorization"] = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
        self._known: dict[int, list[Any]] = {}

    def avro(self, schema_id: int) -> list[Any]:
        """Return an Avro schema as plain data, last in the list, behind those that it refers to.

        Raises:
            ValueError: the registry has no schema of that id, or one of another format.
            RetriableError: the registry cannot be reached, or does not answer.
        """
        found = self._known.get(schema_id)
        if found is None:
            found = self._known[schema_id] = self._with_references(self._get(f"/schemas/ids/{schema_id}"), set())
        return found

    def _with_references(self, answer: Any, seen: set[tuple[str, int]]) -> list[Any]:
        if not isinstance(answer, dict) or not isinstance(answer.get("schema"), str):
            raise RetriableError(f"the schema registry at {self.url} gave an answer without a schema")
        if answer.get("schemaType", "AVRO") != "AVRO":
            raise ValueError("the schema of that id is not an Avro schema")
        schemas: list[Any] = []
        for reference in answer.get("references") or ():
            subject, version = str(reference["subject"]), int(reference["version"])
            if (subject, version) not in seen:
                seen.add((subject, version))
                path = f"/subjects/{quote(subject, safe='')}/versions/{version}"
                schemas += self._with_references(self._get(path), seen)
        return [*schemas, json.loads(answer["schema"])]

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path, headers=self._headers)
        remedy = "Check that it runs and that the address, the network and the timeout are right"
        try:
            with urllib.request.urlopen(request, timeout=self._seconds) as response:
                return json.loads(response.read(_MAX_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise ValueError(f"the schema registry has no {path}") from None
            if error.code in (401, 403):
                remedy = "Check auth= of SchemaRegistry"
            raise RetriableError(f"the schema registry at {self.url} answered {error.code}", remedy=remedy) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RetriableError(
                f"the schema registry at {self.url} cannot be read: {type(error).__name__}", remedy=remedy
            ) from None
