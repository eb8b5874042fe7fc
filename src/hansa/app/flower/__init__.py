"""The API of Flower 0.17 that its tutorials use, on Hansa's server and workers: change one import.

    import hansa.app.flower as fl              instead of   import flwr as fl

    fl.client.NumPyClient                      get_parameters, fit, evaluate, and set_parameters if you like
    fl.client.start_numpy_client("localhost:8080", client=...)
    fl.server.strategy.FedAvg(eval_fn=..., min_available_clients=2, ...)
    fl.server.start_server("[::]:8080", strategy=..., config={"num_rounds": 3})

A client is an object in the user's own process, so no code travels: the jobs submitted say "call the client".
Without identities nothing listens beyond this machine, and a note says so. With them it is mutual TLS, as everywhere:

| variable | at the server | at a client |
|---|---|---|
| HANSA_IDENTITY | its identity, of role server | its identity, of role worker |
| HANSA_SUBMITTER | an identity of role submitter, which signs | |
| HANSA_HOST | a name of its certificate, for itself to dial (localhost) | |
| HANSA_ALLOW | | whose jobs to take part in, as `signer:carol` |

    bridge     the model and the algorithms that call the client; the jobs made of them
    client     the worker whose executor is a thread of this process
    server     the server, and the three runs it submits to itself: layout, first parameters, training
"""

from hansa.app.flower import client as client, server as server, weights as common  # noqa: F401
