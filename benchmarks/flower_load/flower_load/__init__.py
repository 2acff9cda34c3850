"""Trivial training under FedAvg, as a Flower app: the counterpart of the light agents."""
