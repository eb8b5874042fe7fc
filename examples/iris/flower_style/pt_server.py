"""The tutorial's server, with one import changed: python pt_server.py -r 40"""

import argparse

from pt_client import PTMLPClient

import hansa.app.flower as fl


def get_eval_fn(model):
    """A function that measures parameters on the model's validation split."""

    # This `evaluate` function will be called after every round
    def evaluate(parameters: fl.common.Weights):
        loss, _, accuracy_dict = model.evaluate(parameters)
        return loss, accuracy_dict

    return evaluate


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-r", "--rounds", type=int, default=3, help="number of rounds to train")
    args = parser.parse_args()

    model = PTMLPClient(split="val")
    strategy = fl.server.strategy.FedAvg(eval_fn=get_eval_fn(model))
    fl.server.start_server("[::]:8080", strategy=strategy, config={"num_rounds": args.rounds})
