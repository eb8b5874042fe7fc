"""Arithmetic modulo 2⁶⁴ on int64 tensors: products on the units that are fast, random values, fixed point."""

from hansa.mpc.ring.convolution import columns, conv2d, fold
from hansa.mpc.ring.fixed_point import FRACTION_BITS, decode, encode
from hansa.mpc.ring.products import kernels, matmul
from hansa.mpc.ring.random import Prg

__all__ = ["FRACTION_BITS", "Prg", "columns", "conv2d", "decode", "encode", "fold", "kernels", "matmul"]
