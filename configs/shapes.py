"""The paper's systems at small scale, on the embedded data set `shapes`.

  python -m sagan_jax.main --config configs/shapes.py:feat16

The networks and rates of configs/quickstart.py, half as many steps. Variants as in
configs/systems.py, with attention at 8 or 16 and in Table 2 at 16.
"""

import ml_collections

from configs import quickstart, systems

BEST_PUBLIC = systems.attention_at(16) | {
    'ema.decay': 0.999,
    'spectral_norm.epsilon': 1e-8,
    'batch_norm.cross_replica': False,
}


def get_config(variant: str = 'feat16') -> ml_collections.ConfigDict:
    config = quickstart.get_config()
    config.num_train_steps = 1000
    config.evaluate_every = 250
    return systems.apply(config, variant, BEST_PUBLIC)
