"""A NumPyClient behind a client_fn: a logistic regression that is continued from where it is told."""

import warnings

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

FEATURES, CLASSES = 13, 3


class FlowerClient(NumPyClient):
    def __init__(self, x, y, epochs):
        self.x, self.y = x, y
        self.model = LogisticRegression(C=10.0, max_iter=epochs, warm_start=True)
        self.model.classes_ = np.arange(CLASSES)
        self._set([np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES)])

    def _set(self, arrays):
        self.model.coef_, self.model.intercept_ = arrays

    def get_parameters(self, config):
        return [self.model.coef_, self.model.intercept_]

    def fit(self, parameters, config):
        self._set(parameters)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.fit(self.x, self.y)
        return self.get_parameters({}), len(self.x), {"server_round": config.get("server_round", 0)}

    def evaluate(self, parameters, config):
        self._set(parameters)
        told = self.model.predict_proba(self.x)
        loss = log_loss(self.y, told, labels=np.arange(CLASSES))
        return loss, len(self.x), {"accuracy": float((told.argmax(axis=1) == self.y).mean())}


def client_fn(context: Context):
    x, y = load_wine(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    own = np.arange(
        context.node_config.get("partition-id", 0), len(y), context.node_config.get("num-partitions", 1)
    )
    return FlowerClient(x[own], y[own], int(context.run_config["local-epochs"])).to_client()


app = ClientApp(client_fn=client_fn)
