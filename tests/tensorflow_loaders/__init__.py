"""Training from patchloom in TensorFlow and JAX, in an environment that has them."""
