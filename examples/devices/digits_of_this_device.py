"""What one device has: its share of scikit-learn's handwritten digits. DEVICE says which of the six devices it is."""

import os

from quorate.clients.adapters.examples import Examples
from quorate.simulations import datasets


def examples() -> Examples:
    federated = datasets.digits().partition("dirichlet", clients=6, alpha=5.0, seed=0)
    return federated.clients[int(os.environ["DEVICE"])]
