"""Manifests are read back exactly or not at all."""

import dataclasses
from pathlib import Path

import google_crc32c
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.checkpoint import manifest
from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.errors import CorruptError, FatalError, SettingsError

GOLDEN = Path(__file__).parent / "golden" / "manifest_v1.json"
GOLDEN_CRC = GOLDEN.with_name("manifest_v1_crc32c.json")
EXAMPLE = Manifest(
    "card-spend",
    "0-3",
    7,
    42,
    1_700_000_000_123,
    (
        FileRef("000008.sst", "card-spend/0-3/files/0000000006-000102030405060708090a0b0c0d0e0f", 4096, "00" * 16),
        FileRef("CURRENT", "card-spend/0-3/files/0000000007-ff", 16, "ff" * 16),
    ),
    {"payments/3": 1000, "ä/0": 0},
    {"watermarks": {"payments/3": 5}, "note": "ü\n", "list": [1, 2.5, None, True]},
)

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
COUNTS = st.integers(0, 2**60)
MANIFESTS = st.builds(
    Manifest,
    TEXT, TEXT, COUNTS, COUNTS, COUNTS,
    st.lists(st.builds(FileRef, TEXT, TEXT, COUNTS, TEXT, TEXT), max_size=3).map(tuple),
    st.dictionaries(TEXT, COUNTS, max_size=3),
    st.dictionaries(TEXT, JSON, max_size=3),
)  # fmt: skip


def test_version_1_stays():
    assert manifest.decode(GOLDEN.read_bytes(), "golden") == EXAMPLE
    assert manifest.encode(EXAMPLE) == GOLDEN.read_bytes()
    assert EXAMPLE.size_bytes == 4112


def test_version_1_with_crcs_stays():
    first, second = EXAMPLE.files
    example = dataclasses.replace(EXAMPLE, files=(msgspec.structs.replace(first, crc32c="0badcafe"), second))
    assert manifest.decode(GOLDEN_CRC.read_bytes(), "golden") == example
    assert manifest.encode(example) == GOLDEN_CRC.read_bytes()


@given(MANIFESTS)
def test_manifests_are_read_back(one):
    assert manifest.decode(manifest.encode(one), "here") == one


@given(st.data())
def test_damage_is_found(data):
    whole = manifest.encode(EXAMPLE)
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(damaged), whole[:place]):
        with pytest.raises(CorruptError, match="somewhere"):
            manifest.decode(broken, "somewhere")


def framed(body):
    return b'{"crc32c":"%08x","manifest":%b}\n' % (google_crc32c.value(body), body)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"nonsense", b'{"version":1}', b'{"version":"1"}'])
def test_nonsense_with_a_right_checksum_is_damage(body):
    with pytest.raises(CorruptError, match="somewhere"):
        manifest.decode(framed(body), "somewhere")


def test_a_later_version_is_not_damage():
    with pytest.raises(FatalError, match=r"version 2.*later one"):
        manifest.decode(framed(b'{"version":2,"everything":"else"}'), "somewhere")


def test_paths_sort_like_numbers():
    paths = [manifest.manifest_path("t", "0-1", number) for number in (0, 1, 9, 10, 999, 10**9)]
    assert paths == sorted(paths)
    assert [manifest.manifest_number(path) for path in paths] == [0, 1, 9, 10, 999, 10**9]
    assert manifest.manifest_number("t/0-1/manifests/tmp") is None
    path = manifest.file_path("t", "0-1", 12, "ab" * 16)
    assert manifest.file_epoch(path) == 12
    assert manifest.file_epoch("t/0-1/files/else") is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "ä", "a\n"])
def test_names_that_cannot_be_in_a_path_are_refused(name):
    with pytest.raises(SettingsError, match="name"):
        manifest.manifest_path(name, "0-1", 1)
    with pytest.raises(SettingsError, match="name"):
        manifest.files_path("t", name)
