"""What every command derives from a config: data set, subsets, device, networks."""

from __future__ import annotations

from pathlib import Path

import torch

from fastseg import checkpoint
from fastseg.checkpoint import Identity
from fastseg.config import TrainConfig
from fastseg.errors import ConfigError
from fastseg.models import SegFormer
from fastseg.pipelines import get_dataset
from fastseg.subsets import all_subsets


class RunContext:
    """The fixed surroundings of a run.

    Attributes:
        spec: the data set.
        modalities: those of the run, in its order.
        subsets: all 2^M - 1 choices of them, the full set last.
        device: where networks live.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.spec = get_dataset(config.data.dataset)
        self.modalities = self.spec.select(config.data.modalities)
        self.subsets = all_subsets([modality.letter for modality in self.modalities])
        self.device = choose_device(config.device)

    @property
    def num_classes(self) -> int:
        """K, the number of classes of the data set."""
        return self.spec.num_classes

    def autocast(self) -> torch.autocast:
        """The arithmetic of the networks: bf16, or as stored for fp32."""
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def new_network(self, seed: int) -> SegFormer:
        """A network on the CPU with random weights that depend on the seed alone."""
        model = self.config.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SegFormer(
                model.backbone,
                self.num_classes,
                embed_dim=model.embed_dim,
                dropout=model.dropout,
                drop_path=model.drop_path,
                norm_momentum=model.norm_momentum,
            )

    def load_network(self, path: Path) -> SegFormer:
        """A finished network in eval mode on the device.

        Raises:
            CheckpointError: the file is missing or belongs to other data or another model.
        """
        network = self.new_network(seed=0)
        checkpoint.load_weights(path, network, self.identity("any"))
        return network.to(self.device).eval()

    def identity(self, network: str) -> Identity:
        """What the weights of this run belong to."""
        return Identity(
            network=network,
            dataset=self.spec.name,
            classes=tuple(self.spec.classes),
            modalities=tuple(modality.name for modality in self.modalities),
            backbone=self.config.model.backbone,
            embed_dim=self.config.model.embed_dim,
        )


def choose_device(wanted: str) -> torch.device:
    """The device to run on; asking for a GPU that is not there is an error."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda but torch finds no GPU: use --device cpu or auto")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)
