"""Private prediction: a client has an image, a server a model, and only the client sees the answer.

    hansa mpc local examples/secret/prediction_service.py --requests 20

The server never sees an image or an answer, the client never sees a parameter; a third party computes with them and
sees neither. A client that asks often enough can still learn about the model from its answers.
"""

import time

import torch
import torch.nn.functional as F
from learning import Training, arguments, images
from torch import nn

import hansa.mpc


def main() -> None:
    asked = arguments(__doc__, requests=20, hidden=64)
    (x, digit), (test_x, test_y) = images(quick=True)
    net = nn.Sequential(nn.Linear(64, asked.hidden), nn.ReLU(), nn.Linear(asked.hidden, 10))
    with hansa.mpc.connect() as session:
        client, server = session.names[0], session.names[-1]
        if session.me == server:
            torch.manual_seed(0)
            Training(F.cross_entropy, epochs=10, batch=32, lr=0.2).run(net, x, digit)
        session.share_module(net, owner=server)
        answers, times = [], []
        for at in range(3 if asked.quick else asked.requests):
            began = time.perf_counter()
            image = session.share(lambda at=at: test_x[at : at + 1], owner=client)  # read at the client alone
            answers.append(session.reveal(net(image).argmax(1), to=client))
            times.append(time.perf_counter() - began)
        if session.me == client:
            right = sum(int(answer[0]) == int(label) for answer, label in zip(answers, test_y, strict=False))
            middle = sorted(times)[len(times) // 2]
            print(f"{len(answers)} requests, {right} answers right, {1000 * middle:.1f} ms each")
            print(session.report())


if __name__ == "__main__":
    main()
