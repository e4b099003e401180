"""A tiny model with random weights; nothing is fetched."""

import socket

import pytest

from tests.support.dataset_fixtures import deliver_tree, written_once
from tests.support.tiny_clip import write_clip

__all__ = ["deliver_tree", "written_once"]


@pytest.fixture(scope="session")
def written_clip(tmp_path_factory):
    """Folder of a tiny CLIP; tests read it only."""
    return write_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(autouse=True)
def connections(monkeypatch):
    """The attempts to reach another machine; there must be none."""
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("tests have no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield tried
    # a library that tries may pass over the error
    assert tried == []
