"""Two parties and no helper: x = x₀ + x₁ modulo 2⁶⁴, party i holding xᵢ.

What the parties cannot compute apart (products of one's number and the other's, carries) they get by oblivious
transfers, extended from 128 on an elliptic curve at the start. Either party alone learns nothing, if it follows the
protocol. Sources: Gilboa 1999 (products), https://doi.org/10.1007/3-540-48405-1_8; Mohassel and Zhang 2017, SecureML
(matrices), https://eprint.iacr.org/2017/396; Goldreich, Micali and Wigderson 1987 (bits),
https://doi.org/10.1145/28395.28420; Rathee et al. 2020, CrypTFlow2 (comparison, exact truncation),
https://eprint.iacr.org/2020/1002
"""

from hansa.mpc.two_party.protocol import TwoParty

__all__ = ["TwoParty"]
