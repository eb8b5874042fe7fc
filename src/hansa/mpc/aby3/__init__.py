"""Three parties, replicated shares: x = x₀ + x₁ + x₂ modulo 2⁶⁴, party i holding xᵢ and xᵢ₊₁.

Any one party alone learns nothing, if it follows the protocol. Sources: Araki et al. 2016 (multiplication),
https://eprint.iacr.org/2016/768; Mohassel and Rindal 2018, ABY3, https://eprint.iacr.org/2018/403; Dalskov, Escudero
and Keller 2020 (truncation that does not wrap), https://eprint.iacr.org/2020/1330
"""

from hansa.mpc.aby3.protocol import Aby3

__all__ = ["Aby3"]
