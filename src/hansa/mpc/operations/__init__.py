"""What ATen's operations mean on secrets, by kind; importing this registers them."""

from hansa.mpc.operations import arithmetic, compare, dense, layers, losses, nonlinear, places, shape

__all__ = ["arithmetic", "compare", "dense", "layers", "losses", "nonlinear", "places", "shape"]
