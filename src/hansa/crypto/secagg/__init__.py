"""Secure aggregation as two tables of states, without a network: what a client and the server do in each leg.

    leg          client → server                                 server → client
    0 advertise  two public keys, a commitment, a signature      roster: digests of all; signed keys of its neighbours
    1 share      for each neighbour a sealed share of b and s    what its neighbours sealed for it
    2 mask       x + PRG(b) ± PRG(s with each neighbour)         who masked
    3 agree      its signature on that list                      its neighbours' signatures
    4 unmask     of each neighbour that masked a share of b,     –
                 of each that shared and did not, of s

The server learns Σ x over those that masked, and nothing else, while fewer than the threshold of any client's holders
work with it. With a threshold of more than two thirds, or of more than half and fewer than a third dropped out, it may
even lie: the list of leg 3 is what at least a threshold of holders signed, so that no secret has both halves revealed.

Sources: Bonawitz et al. 2017, Practical Secure Aggregation, https://eprint.iacr.org/2017/281; Bell et al. 2020,
https://eprint.iacr.org/2020/704
"""

from hansa.crypto.secagg.client import Client
from hansa.crypto.secagg.server import Server
from hansa.crypto.secagg.terms import Advert, Fields, Roster, Terms

__all__ = ["Advert", "Client", "Fields", "Roster", "Server", "Terms"]
