"""Two servers and a dealer: x = x₀ + x₁ modulo 2⁶⁴, server i holding xᵢ, the dealer nothing.

The dealer knows no input and hears nothing while the servers compute; it gives them random values that fit together,
and must not be in league with either. Any one of the three alone learns nothing, if it follows the protocol. Sources:
Beaver 1992 (dealt products), https://doi.org/10.1007/3-540-46766-1_34; Dahl et al. 2018 (Pond in TF Encrypted),
https://arxiv.org/abs/1810.08130; Escudero et al. 2020 (random numbers shared with their bits),
https://eprint.iacr.org/2020/338
"""

from hansa.mpc.pond.protocol import Pond

__all__ = ["Pond"]
