"""Context that every command derives from a config: data set, device, networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastseg.config.described import changed_description
from fastseg.config.run import TrainConfig
from fastseg.console import say
from fastseg.distributed.launch import choose_device
from fastseg.distributed.ranks import Ranks
from fastseg.engine.optim import nvidia_apex
from fastseg.errors import listed
from fastseg.methods.base import NewModel, Surroundings
from fastseg.models import Segmenter, model_builder
from fastseg.models.precision import autocast
from fastseg.models.registry import optional_keywords
from fastseg.pipelines import get_dataset

if TYPE_CHECKING:
    from fastseg.checkpoint.weights import Identity


class RunContext:
    """The fixed surroundings of a run.

    Attributes:
        config: config of the run, with a precision that is decided.
        method: method of the config, with its options.
        spec: the data set.
        modalities: those of the run, in its order.
        ranks: this process and its peers; one process alone by default.
        device: device that holds the networks.

    Raises:
        ValueError: the precision is still ``auto``.
        ConfigError: apex is asked for and cannot serve.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks | None = None) -> None:
        self.spec = get_dataset(config.data.dataset, config.data.description)
        self.modalities = self.spec.select(config.data.modalities)
        self.ranks = ranks or Ranks(choose_device(config.device))
        self.device = self.ranks.device
        if config.precision == "auto":
            raise ValueError(
                "the precision is not decided: enter a RunFolder, which decides it once for a run, "
                "or set the value of best_precision(device)"
            )
        self.config = config
        self.method = config.build_method()
        if config.model.norm == "apex":
            nvidia_apex.require("--model.norm apex", self.device)

    @property
    def surroundings(self) -> Surroundings:
        """Facts about the run for its method."""
        names = tuple(modality.name for modality in self.modalities)
        folder = self.config.out / self.config.name
        return Surroundings(self.config.data, names, folder, self.ranks)

    @property
    def num_classes(self) -> int:
        """K, the number of classes of the data set."""
        return self.spec.num_classes

    def autocast(self) -> torch.autocast:
        """The arithmetic of the networks: bf16 or fp16, or as stored for fp32."""
        return autocast(self.device, self.config.precision)

    def new_network(self, seed: int, name: str = "") -> Segmenter:
        """A network on the CPU with random weights that depend on the seed alone.

        Args:
            seed: seed of the weights.
            name: name of the network, if the method's networks differ; none: the model of the run.
        """
        model = self.config.model
        backbone = self.config.backbone_of(name)
        modalities = tuple(modality.name for modality in self.modalities)
        make = partial(
            model_builder(backbone),
            backbone,
            self.num_classes,
            modalities,
            embed_dim=model.embed_dim,
            dropout=model.dropout,
            drop_path=model.drop_path,
            norm_momentum=model.norm_momentum,
            **optional_keywords(backbone, vars(model)),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.method.build(name, NewModel(make, modalities))
        if model.norm == "apex":
            nvidia_apex.use_layer_norm(network)
        return network

    def load_network(self, path: Path, role: str | None = None) -> Segmenter:
        """A finished network in eval mode on the device.

        Args:
            path: weights that a run has written.
            role: the name that the network must have there; None takes any.

        Raises:
            CheckpointError: the file is missing, damaged, or belongs to other data, another model
                or another role.
        """
        # forecasts and steps need no files
        from fastseg.checkpoint.weights import load_weights, read_identity

        network = self.new_network(0, role or "")
        checked = load_weights(path, network, self.identity(role or "any"), role)
        if not checked and self.ranks.is_first:
            say(f"note: {path} has no checksum, as an earlier version wrote it: taken as it is")
        kept, now = read_identity(path)[1].get("description"), self.config.data.description
        if kept and now and (changed := changed_description(kept, now)) and self.ranks.is_first:
            say(
                f"warning: {path} was trained on data described otherwise ({listed(changed)}): it "
                "may be fed what it has not learnt"
            )
        return network.to(self.device).eval()

    def identity(self, network: str) -> Identity:
        """Identity of the weights of a network of this run, which their file carries."""
        from fastseg.checkpoint.weights import Identity

        return Identity(
            network=network,
            dataset=self.spec.name,
            classes=tuple(self.spec.classes),
            modalities=tuple(modality.name for modality in self.modalities),
            backbone=self.config.backbone_of(network),
            embed_dim=self.config.model.embed_dim,
        )
