"""Attacks on ourselves: what a hostile client can do to the model, and what a curious server can learn of a client.

    adversary, byzantine, poison         clients that lie: about what they computed, about their data
    linear, labels, words                what an update says outright: an input, its label, which words there were
    matching (DLG, inverting gradients)  inputs found by making a model's update equal the one that was seen
    membership (LiRA), canaries          whether somebody's data was there; ε bounded from below
    malicious_server                     lies to the clients of a secure sum, for one client's contribution

An attack takes a job's own objects and replaces nothing of Hansa's: liars are a reducer or clients around the real
ones, and a curious server reads messages that `perform` gave. Tests, examples and `hansa audit` import this folder.
"""
