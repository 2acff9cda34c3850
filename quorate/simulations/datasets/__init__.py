"""Datasets, and their partition over simulated clients.

Bundled with scikit-learn (`digits`, `wine`, …), made up (`fedprox`, `images`, `sequences`, `population`), or other
people's (`from_table`, `from_hugging_face`, `leaf`, …).
"""

from quorate.clients.adapters.examples import Examples
from quorate.simulations.datasets.bundled import breast_cancer, diabetes, digits, wine
from quorate.simulations.datasets.central import Dataset
from quorate.simulations.datasets.client_data import tff_sqlite
from quorate.simulations.datasets.federated import ClientData, Clients, FederatedDataset, GeneratedClients
from quorate.simulations.datasets.leaf import leaf
from quorate.simulations.datasets.synthetic import fedprox, images, population, sequences
from quorate.simulations.datasets.tables import from_arrays, from_hugging_face, from_table, from_torch, read

__all__ = [
    "ClientData",
    "Clients",
    "Dataset",
    "Examples",
    "FederatedDataset",
    "GeneratedClients",
    "breast_cancer",
    "diabetes",
    "digits",
    "fedprox",
    "from_arrays",
    "from_hugging_face",
    "from_table",
    "from_torch",
    "images",
    "leaf",
    "population",
    "read",
    "sequences",
    "tff_sqlite",
    "wine",
]
