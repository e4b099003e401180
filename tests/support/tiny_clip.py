"""A tiny CLIP with random weights, as its library writes it, and runs that learn from it."""

from dataclasses import fields, replace

import torch

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


def guided_by(config, folder):
    """A config whose method learns from the tiny CLIP in a folder; another one as it is."""
    if "vision_language" not in {field.name for field in fields(config.losses)}:
        return config
    losses = replace(config.losses, vision_language=folder, embed_dim=DIM)
    return replace(config, losses=losses)
