"""The training data of a run, wherever they are now."""

import ml_collections

from sagan_jax import data
from sagan_jax.configuration import resolving
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.system import distributed


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked configuration with what it leaves to its data, see `resolving.resolve`.

    Raises:
      UserError: if there are no such data, or `checks.check` refuses the result.
    """
    dataset = config.dataset
    return resolving.resolve(
        config, lambda: data.count_classes(dataset), lambda: data.count_images(dataset)
    )


def load(config: ml_collections.ConfigDict, run: RunFolder) -> data.Source:
    """Loads the training images of a run, which are those with which it began.

    Args:
      config: the run's configuration.
      run: the run's folder; nothing may have begun yet.

    Raises:
      UserError: if they cannot be loaded, are others, or differ between processes.
    """
    source = data.load(config.dataset, 'train')
    found = data.identity(source)
    distributed.check_agreement(found)
    distributed.on_first(lambda: provenance.check_data(run, found))
    return source
