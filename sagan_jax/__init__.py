"""Self-Attention Generative Adversarial Networks (Zhang et al., ICML 2019) in JAX and Flax."""
