"""Strategies: federated algorithms as a local rule, an aggregator and a server rule; one file each."""

from quorate.strategies import aggregators, local_rules, server_rules
from quorate.strategies.adaptive import fedadagrad, fedadam, fedyogi
from quorate.strategies.contract import Aggregator, LocalRule, ServerRule, Strategy, strategy
from quorate.strategies.control_variates import scaffold
from quorate.strategies.federated_averaging import fedavg
from quorate.strategies.proximal_term import fedprox
from quorate.strategies.robust import median

__all__ = [
    "Aggregator",
    "LocalRule",
    "ServerRule",
    "Strategy",
    "aggregators",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedprox",
    "fedyogi",
    "local_rules",
    "median",
    "scaffold",
    "server_rules",
    "strategy",
]
