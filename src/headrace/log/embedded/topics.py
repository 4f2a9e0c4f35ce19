"""The directories of topics, and making and removing them while other processes do the same."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from headrace.errors import CorruptError, SettingsError
from headrace.log.api import Layout, TopicConfig, TopicInfo
from headrace.log.embedded.files import (
    locked_file,
    read_versioned_json,
    storage,
    sync_directory,
    write_json,
)
from headrace.log.embedded.marks import EMPTY, encode_end
from headrace.log.embedded.segment import EndFile, Place
from headrace.log.names import check_growth, check_new_topic, check_same_partitions, is_topic_name, no_such_topic
from headrace.serde.converting import converter

FORMAT_VERSION = 1
_TOPIC_VERSION = 1
_FORMAT_FILE = "headrace-log.json"
_config = converter(TopicConfig)
_Partitions = Annotated[int, msgspec.Meta(ge=1)]


class TopicDirectory:
    """The topics of one embedded log."""

    def __init__(self, directory: Path) -> None:
        self.identity = ""
        self._root = directory
        self._topics = directory / "topics"

    def open(self) -> None:
        """Create the log if there is none.

        Raises:
            InvalidError: a newer headrace made it.
            SettingsError: the directory cannot be used.
        """
        marker = self._root / _FORMAT_FILE
        with storage("the log", self._root):
            if any(path.exists() and not path.is_dir() for path in (self._root, *self._root.parents)):
                raise SettingsError(f"the log {self._root} is not a directory", remedy="Choose another one with --log")
            if not marker.exists():
                self._root.mkdir(parents=True, exist_ok=True)
                with self._lock():
                    if not marker.exists():
                        write_json(marker, {"format": FORMAT_VERSION, "identity": os.urandom(8).hex()})
            self.identity = str(read_versioned_json(marker, FORMAT_VERSION).get("identity", ""))
            if not self._topics.exists():
                self._topics.mkdir(exist_ok=True)

    def names(self) -> list[str]:
        """Return the names of all topics, sorted."""
        with storage("the topics", self._root):
            return sorted(filter(is_topic_name, os.listdir(self._topics)))

    def find(self, name: str) -> TopicInfo | None:
        """Return a topic, or None if there is none of that name."""
        content = self._read(name)
        if content is None:
            return None
        path = self._topics / name / "topic.json"
        try:
            config = _config(dataclasses.asdict(TopicConfig(**content["config"])))
            return TopicInfo(name, msgspec.convert(content["partitions"], _Partitions), config)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"the file {path} is damaged", remedy="Restore it, or delete the topic") from error

    def layout(self, name: str) -> Layout | None:
        """Return how many partitions a topic has and its id, or None if there is none of that name.

        Topics that an older version made have no id.
        """
        content = self._read(name)
        return None if content is None else Layout(int(content["partitions"]), str(content.get("id", "")))

    def _read(self, name: str) -> dict[str, Any] | None:
        if not is_topic_name(name):
            return None
        with storage(f"topic {name}", self._root):
            try:
                return read_versioned_json(self._topics / name / "topic.json", _TOPIC_VERSION)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def place(self, name: str, partition: int) -> Place:
        """Return where a partition lives."""
        return Place(name, partition, self._topics / name / str(partition))

    def incarnation(self, name: str) -> tuple[int, int]:
        """Return what is different for a topic that was deleted and made again; growing it changes this as well.

        Raises:
            NotFoundError: there is none of that name.
        """
        with storage(f"topic {name}", self._root):
            try:
                found = os.stat(self._topics / name / "topic.json")
            except FileNotFoundError:
                raise no_such_topic(name) from None
        return found.st_ino, found.st_mtime_ns

    def create(self, name: str, partitions: int, config: TopicConfig) -> TopicInfo:
        """Create a topic, whole or not at all, or return the one that exists."""
        check_new_topic(name, partitions)
        with storage(f"creating topic {name}", self._root):
            existing = self.find(name)
            if existing is None:
                with self._lock():
                    existing = self.find(name)
                    if existing is None:
                        return self._create(TopicInfo(name, partitions, config))
        return check_same_partitions(existing, partitions)

    def grow(self, name: str, partitions: int) -> TopicInfo:
        """Give a topic more partitions: other processes see all of them from one moment on."""
        with storage(f"growing topic {name}", self._root), self._lock():
            before = self.find(name)
            if before is None:
                raise no_such_topic(name)
            check_growth(before, partitions)
            directory = self._topics / name
            for partition in range(before.partitions, partitions):
                # Nobody knows of it yet, so whatever stands here is what a crash left of an earlier attempt.
                shutil.rmtree(directory / str(partition), ignore_errors=True)
                _make_partition(directory / str(partition))
            topic = dataclasses.replace(before, partitions=partitions)
            sync_directory(directory)
            kept = self.layout(name)
            _write_topic(directory, topic, kept.topic_id if kept is not None else "")
            sync_directory(directory)
            return topic

    def delete(self, name: str) -> None:
        """Delete a topic, and tell those who have its files open."""
        with storage(f"deleting topic {name}", self._root), self._lock():
            topic = self.find(name)
            if topic is None:
                raise no_such_topic(name)
            trash = self._root / "trash" / name
            shutil.rmtree(trash, ignore_errors=True)
            trash.parent.mkdir(exist_ok=True)
            (self._topics / name).rename(trash)
            for partition in range(topic.partitions):
                _mark_deleted(Place(name, partition, trash / str(partition)))
            shutil.rmtree(trash, ignore_errors=True)

    def _create(self, topic: TopicInfo) -> TopicInfo:
        # The lock is held, so whatever stands here is what a crash left of an earlier attempt.
        fresh = self._root / "incoming" / topic.name
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for partition in range(topic.partitions):
            _make_partition(fresh / str(partition))
        _write_topic(fresh, topic, os.urandom(8).hex())
        sync_directory(fresh)
        fresh.rename(self._topics / topic.name)
        sync_directory(self._topics)
        return topic

    def _lock(self) -> AbstractContextManager[None]:
        return locked_file(self._root / "topics.lock")


def _make_partition(directory: Path) -> None:
    directory.mkdir()
    (directory / "end").write_bytes(encode_end(EMPTY))


def _write_topic(directory: Path, topic: TopicInfo, topic_id: str) -> None:
    content: dict[str, Any] = {"format": _TOPIC_VERSION, "partitions": topic.partitions}
    if topic_id:
        content["id"] = topic_id
    write_json(directory / "topic.json", {**content, "config": dataclasses.asdict(topic.config)})


def _mark_deleted(place: Place) -> None:
    try:
        end_file = EndFile(place, writable=True)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(end_file.fd, fcntl.LOCK_EX)
        end_file.write(EMPTY._replace(deleted=True))
    finally:
        end_file.close()
