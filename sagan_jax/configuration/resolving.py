"""Decides what a configuration leaves open: keys that are None until the data are known."""

from collections.abc import Callable

import ml_collections

from sagan_jax.configuration import checks
from sagan_jax.models.architectures import attention_resolutions, usual_attention


def is_open(config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration leaves anything to `resolve`."""
    model = config.model
    keys = config.dataset.num_classes, model.generator_attention, model.discriminator_attention
    return None in keys


def resolve(
    config: ml_collections.ConfigDict, count_classes: Callable[[], int]
) -> ml_collections.ConfigDict:
    """A configuration with a value for every key that networks and data need.

    `dataset.num_classes=None` becomes the number of classes that there are. If there is one class,
    `model.conditioning` becomes 'none'. Attention that is None becomes that of
    `architectures.usual_attention`.

    Args:
      config: one that `checks.check` accepts; it is not changed.
      count_classes: called if `dataset.num_classes` is None; returns the number of classes.

    Raises:
      UserError: if `checks.check` refuses the result, as some keys depend on the classes.
    """
    if not is_open(config):
        return config
    resolved = config.copy_and_resolve_references()
    model, dataset = resolved.model, resolved.dataset
    with resolved.unlocked():
        if dataset.num_classes is None:
            dataset.num_classes = count_classes()
            if dataset.num_classes < 2:
                model.conditioning = 'none'
        possible = attention_resolutions(model.architecture, dataset.image_size)
        if model.generator_attention is None:
            model.generator_attention = usual_attention(possible[0])
        if model.discriminator_attention is None:
            model.discriminator_attention = usual_attention(possible[1])
    checks.check(resolved)
    return resolved
