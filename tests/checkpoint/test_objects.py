"""Checkpoint stores keep the contract, and say what is wrong with them."""

import re

import pytest

from headrace.checkpoint.store import open_objects
from headrace.errors import RetriableError, SettingsError
from headrace.testing.conformance.checkpoint import ObjectsContract


class TestDirectory(ObjectsContract):
    def objects(self, directory):
        return open_objects(str(directory), {})


class TestMemory(ObjectsContract):
    def objects(self, directory):
        return open_objects("memory://", {})


def test_a_directory_is_shared_by_all_who_open_it(tmp_path):
    open_objects(str(tmp_path / "c"), {}).create("a/b", b"1")
    assert open_objects(f"file://{tmp_path}/c", {}).read("a/b") == b"1"


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=re.escape(f"{tmp_path}/file/c") + ".*HEADRACE_CHECKPOINTS"):
        open_objects(str(tmp_path / "file" / "c"), {})


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "gs://bucket", "http://host"])
def test_urls_that_make_no_sense_are_refused(url):
    with pytest.raises(SettingsError, match="s3://bucket/prefix"):
        open_objects(url, {})


def test_a_store_that_cannot_be_written_is_a_passing_fault(tmp_path):
    objects = open_objects(str(tmp_path / "c"), {})
    objects.create("a", b"")
    # A file where a directory should be.
    with pytest.raises(RetriableError, match="could not write a/b"):
        objects.create("a/b", b"")


def test_s3_is_opened_without_asking_the_network():
    environment = {
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
    }
    assert open_objects("s3://bucket/some/prefix/", environment) is not None
    assert open_objects("s3://bucket", {"AWS_DEFAULT_REGION": "eu-central-1"}) is not None
