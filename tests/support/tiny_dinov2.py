"""Tiny vision backbones with random weights, as their library writes them."""

import torch

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def write_backbone(folder, kind="dinov2", seed=0, **more):
    """A backbone of four blocks; returns the model in evaluation mode, and its folder is written.

    Weights are larger than usual, so that a block changes much.
    """
    import transformers

    own = {
        "dinov2": {"image_size": 56, "patch_size": 14},
        "dinov2_with_registers": {"image_size": 56, "patch_size": 14, "num_register_tokens": 2},
        "dinov3_vit": {"image_size": 64, "intermediate_size": 64, "num_register_tokens": 2},
    }[kind]
    name = {
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "dinov3_vit": "DINOv3ViTModel",
    }[kind]
    made = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = made.config_class(**{**SMALL, **own, "initializer_range": 0.2, **more})
        model = made(config).eval()
    model.save_pretrained(folder)
    return model
