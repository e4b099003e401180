"""Tiny models with random weights, written as their libraries write them; nothing is fetched."""

import socket

import pytest
import torch

from tests.support.dataset_fixtures import deliver_tree, written_once

__all__ = ["deliver_tree", "written_once"]

SIDE, DIM = 32, 12


def write_clip(folder, seed=0, **vision):
    """A CLIP of the transformers library: two layers, a token per byte."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    layers = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 160,
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
    }
    config = transformers.CLIPConfig(
        text_config=layers | text,
        vision_config=layers | {"image_size": SIDE, "patch_size": 8} | vision,
        projection_dim=DIM,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.CLIPModel(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def written_clip(tmp_path_factory):
    """Folder of a tiny CLIP; tests read it only."""
    return write_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every attempt to reach another machine ends the test."""

    def refuse(*arguments, **options):
        raise AssertionError(f"a connection was tried: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
