"""Training from patchloom in PyTorch and Keras, in an environment that has them."""
