"""A segmenter on a foundation encoder: shared backbone, an adapter per sensor, a light decoder.

    F_i[m, b] = pyramid_i(backbone with the adapters of m (image[m, b]))
    logits = head(mean over m of F_1[m, b], .., mean over m of F_4[m, b])

Fusion and head are those of M-SegFormer, so methods and their losses apply as they are. No numbers
of such a model on the benchmarks of missing modalities are published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..heads.mlp import MLPHead
from ..in_parts import FusedSegmenter, checked_images
from ..interface import Learning
from ..packing import Packing, encode_packed
from ..partial import learning_only
from .adapters import AdaptedLinear
from .encoder import FoundationEncoder
from .folder import Base, folder_digest


class FoundationSegmenter(FusedSegmenter):
    """The segmenter of any subset of modalities.

    Args:
        base: the backbone, see `fastseg.models.foundation.folder.read_base`; it is taken apart.
        folder: where it was read from; None where there are shapes alone.
        num_classes: K, without the ignored label.
        modalities: names of the M modalities of the run, in the order in which their images come.
        embed_dim: channels E of the head.
        dropout: probability that a channel of the fused map is dropped in training.
        norm_momentum: share of the newest batch in the running statistics of the BatchNorm.
        fusion: a name in `fastseg.models.fusion.FUSIONS`.
        rank: of the adapters; 0: none, and all modalities share everything.
        width: channels of the four levels.
        trained: the backbone learns, too.

    Raises:
        ConfigError: the fusion is unknown or a number is out of range.
    """

    def __init__(
        self,
        base: Base,
        folder: Path | None,
        num_classes: int,
        modalities: Sequence[str],
        embed_dim: int,
        dropout: float = 0.1,
        norm_momentum: float = 0.1,
        fusion: str = "mean",
        rank: int = 8,
        width: int = 256,
        trained: bool = False,
    ) -> None:
        super().__init__(num_classes, embed_dim, dropout, fusion)
        if rank < 0 or width < 1:
            raise ConfigError(
                f"adapter_rank must be at least 0 and pyramid_width at least 1, got {rank} and "
                f"{width}"
            )
        self.folder, self.trained, self.rank = folder, trained, rank
        self.modalities = tuple(modalities)
        self.reads_present = rank > 0
        self.encoder = FoundationEncoder(base, modalities, rank, width, trained)
        self.decoder = MLPHead((width,) * 4, num_classes, embed_dim, dropout, norm_momentum)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the four levels, all the same."""
        return (self.encoder.pyramid.width,) * 4

    def encode(
        self,
        images: Tensor,
        present: Sequence[int] | None = None,
        learning: Learning | None = None,
        packing: Packing | None = None,
    ) -> list[Tensor]:
        """Encode every image of every modality in one call.

        Args:
            images: ``[M', B, 3, H, W]``, normalised as for any network of the run; H and W
                multiples of 32.
            present: positions of these modalities among those of the run; None: all, or with a
                packing those of the run.
            learning: ``[W, B]`` or a function, see `Segmenter.forward`; None: all.
            packing: the images that are encoded; None: all. Those of a packing all learn.

        Returns:
            Four levels ``[M', B, C, h_i, w_i]``; the channels are the fastest axis in memory.

        Raises:
            ValueError: the shape is another one, or positions are missing.
        """
        m, b = checked_images(images)
        positions = list(range(m)) if present is None else list(present)
        if self.rank and (len(positions) != m or max(positions) >= len(self.modalities)):
            raise ValueError(
                f"expected images of the modalities at {positions} among {len(self.modalities)}, "
                f"got {m}"
            )
        owner = None
        if self.rank:
            owners = torch.tensor(positions).to(images.device, non_blocking=True)
            owner = owners.view(m, 1).expand(m, b).reshape(m * b)
        if packing is not None:
            places = packing.places[0]
            own = None if owner is None else owner.index_select(0, places)
            # one after the other, whichever way they were grouped
            together = Packing(packing.places, (sum(packing.groups),))
            return encode_packed([lambda taken: self.encoder(taken, own)], images, together)
        levels = self.encoder(images.flatten(0, 1), owner)
        features = [x.unflatten(0, (m, b)) for x in levels]
        if learning is None:
            return features
        if not isinstance(learning, Tensor):
            learning = learning([x.detach() for x in features])
        return learning_only(features, learning)

    def modality_parameters(self, modality: str) -> list[nn.Parameter]:
        """The adapters of the modality."""
        adapted = [m for m in self.modules() if isinstance(m, AdaptedLinear)]
        return [w[modality] for m in adapted for w in (m.lora_A, m.lora_B) if modality in w]

    def units(self) -> list[nn.Module]:
        """Every transformer block, then the head; embeddings and pyramid stay outside."""
        return [*self.encoder.blocks, self.decoder]

    def layers(self) -> list[list[nn.Module]]:
        """The blocks, the first with the embeddings, the last with the norm; pyramid and head."""
        parts: list[list[nn.Module]] = [[block] for block in self.encoder.blocks]
        parts[0].insert(0, self.encoder.embeddings)
        parts[-1].append(self.encoder.norm)
        return [*parts, [self.encoder.pyramid, self.decoder]]

    def reduced_modules(self) -> list[nn.Module]:
        """The classifier alone: encoders see to the dtype of their products themselves."""
        return [self.decoder.linear_pred]

    def recompute(self, on: bool) -> None:
        """Keep the inputs of the encoder's blocks alone, or everything."""
        self.encoder.checkpointing = on

    def load_encoder(self, path: Path) -> object:
        """Refuse: the encoder is that of the folder.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a foundation encoder comes from the folder --model.foundation: leave out "
            "--model.weights"
        )

    def first_encoder(self) -> str:
        """Where the encoder comes from, and how much of it learns."""
        learns = "it learns" if self.trained else "it is frozen"
        adapters = f"adapters of rank {self.rank} for each of {', '.join(self.modalities)}"
        return f"encoder from {self.folder}, {learns}; {adapters if self.rank else 'no adapters'}"

    def constants_of_files(self) -> dict[str, str]:
        """The digest of the folder; of a backbone that learns that of its config alone."""
        if self.folder is None:
            return {}
        return {"foundation": folder_digest(self.folder, weights=not self.trained)}

    def make_constant(self, dtype: torch.dtype) -> None:
        """Fold the head's projections and the BatchNorm of the evaluation."""
        self.decoder.freeze(dtype)
        self.encoder.to(dtype)
