from quorate.clients.adapters.torch_models import torch as torch

__all__ = ["torch"]
