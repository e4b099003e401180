"""What loss terms need of models, and the errors where a model does not have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastseg.errors import ConfigError
from fastseg.methods.stage import Stage
from fastseg.models.interface import Segmenter


def must_give_features(model: Segmenter, method: str, terms: Sequence[str]) -> None:
    """Refuse a model whose output has no features of each modality.

    Args:
        model: the model.
        method: name of the method.
        terms: what reads the features, such as names of loss terms.

    Raises:
        ConfigError: it has none; the message says what works with it.
    """
    if not model.features_by_modality:
        raise ConfigError(
            f"{' and '.join(terms)} of --method {method} need features of each modality, and "
            f"{type(model).__name__} fuses the modalities within its encoder. With it the methods "
            "baseline (labels, logit distillation) and full_path work, and robustseg and anyseg "
            "with these weights at 0; or take a model that encodes each modality by itself, such "
            "as --model.backbone mit_b2"
        )


def must_have_equal_widths(stage: Stage, models: Mapping[str, Segmenter]) -> None:
    """Refuse networks of a stage whose features have other numbers of channels.

    Raises:
        ConfigError: they have.
    """
    first, *others = [*stage.learners, *stage.targets]
    for other in others:
        if models[other].widths != models[first].widths:
            raise ConfigError(
                f"the {first} learns features of {list(models[first].widths)} channels and the "
                f"{other} has {list(models[other].widths)}: choose --model.teacher-backbone with "
                "the same channels (mit_b1 to mit_b5 have), or leave out the terms on features"
            )
