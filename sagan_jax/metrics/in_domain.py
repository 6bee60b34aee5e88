"""In-domain features: a small classifier trained on the data set, with a fixed recipe.

For images unlike photographs, or if the Inception weights are unavailable. Scores from these
features only compare models of the same data set.
"""

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.typing import ArrayLike

from sagan_jax.metrics.features import FeatureNetwork, Variables

NAME = 'in-domain-1'  # increases with every change of the network or the recipe
FEATURES = 128
STEPS, BATCH_SIZE, LEARNING_RATE, SEED = 1000, 64, 2e-3, 0
ROTATIONS = 4


class Classifier(nn.Module):
    """3×3 convolutions with stride 2 down to 4×4, one more with stride 1, spatial mean, logits."""

    outputs: int

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """images [N, S, S, 3], values from 0 to 255 → features [N, 128] and logits [N, outputs]."""
        x = images.astype(jnp.float32) / 127.5 - 1
        # TF32 or bfloat16 would change the scores.
        conv = partial(
            nn.Conv,
            kernel_size=(3, 3),
            kernel_init=nn.initializers.he_normal(),
            precision=jax.lax.Precision.HIGHEST,
        )
        width = 32
        while x.shape[1] > 4:
            x = nn.relu(conv(width, strides=2)(x))
            width = min(2 * width, FEATURES)
        x = nn.relu(conv(FEATURES)(x))
        features = x.mean((1, 2))
        # Normalised, so that distances and products have the same scale for every data set.
        features *= jax.lax.rsqrt(jnp.square(features).mean(-1, keepdims=True) + 1e-6)
        dense = nn.Dense(self.outputs, precision=jax.lax.Precision.HIGHEST, name='dense')
        return {'features': features, 'logits': dense(features)}


def apply(variables: Variables, images: ArrayLike) -> dict[str, jax.Array]:
    """The classifier as a pure function of images [N, S, S, 3], uint8 or float from 0 to 255.

    Returns float32 'features' [N, 128] and 'logits' [N, classes].
    """
    classifier = Classifier(len(variables['params']['dense']['bias']))
    return cast(dict[str, jax.Array], classifier.apply(variables, images))


def network(variables: Variables) -> FeatureNetwork:
    """The classifier with weights from `fit`, for the scores."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(variables, sep='/').items()):
        digest.update(path.encode() + leaf.tobytes())
    return FeatureNetwork(
        NAME, digest.hexdigest(), 'none', apply, variables, layer='features', logits='logits'
    )


def fit(batches: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int) -> Variables:
    """Trains the classifier with Adam and a cosine schedule, one step per batch, no augmentation.

    If `num_classes` is below 2, it learns to predict by how many quarter turns images were rotated
    (Gidaris et al., 2018), and has four outputs.

    Args:
      batches: `STEPS` batches of `BATCH_SIZE` images uint8 [B, S, S, 3] and labels int32 [B].
      num_classes: labels are below it.

    Returns:
      Variables for `apply`, as numpy arrays.
    """
    network = Classifier(num_classes if num_classes > 1 else ROTATIONS)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    @jax.jit
    def update(variables, opt_state, images, labels, key):
        if num_classes < 2:
            images, labels = rotate(images, key)

        def loss(variables):
            logits = apply(variables, images)['logits']
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state)
        return optax.apply_updates(variables, updates), opt_state

    variables = opt_state = None
    root = jax.random.key(SEED)
    for step, (images, labels) in enumerate(batches):
        if variables is None:
            variables = jax.jit(network.init)(root, images)
            opt_state = optimizer.init(variables)
        key = jax.random.fold_in(root, step)
        variables, opt_state = update(variables, opt_state, images, labels, key)
    return jax.tree.map(np.asarray, variables)


def accuracy(
    variables: Variables, batches: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int
) -> float:
    """The share of images whose class, or rotation without classes, the classifier predicts."""

    @jax.jit
    def correct(variables, images, labels, key):
        if num_classes < 2:
            images, labels = rotate(images, key)
        return apply(variables, images)['logits'].argmax(-1) == labels

    root = jax.random.key(SEED)
    found = [
        np.asarray(correct(variables, images, labels, jax.random.fold_in(root, index)))
        for index, (images, labels) in enumerate(batches)
    ]
    return float(np.concatenate(found).mean())


def rotate(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotates images [N, S, S, 3] by random quarter turns; returns the numbers of turns too."""
    turns = jax.random.randint(key, (len(images),), 0, ROTATIONS)
    turned = jnp.stack([jnp.rot90(images, k, (1, 2)) for k in range(ROTATIONS)])
    return turned[turns, jnp.arange(len(images))], turns
