"""The reference: one party, which sees everything. It has the arithmetic of the others, and none of their secrecy."""

from hansa.mpc.plain.protocol import Plain

__all__ = ["Plain"]
