from quorate.clients.adapters.jax_models import jax as jax
from quorate.clients.adapters.keras_models import keras as keras
from quorate.clients.adapters.sklearn_models import sklearn as sklearn
from quorate.clients.adapters.torch_models import torch as torch

__all__ = ["jax", "keras", "sklearn", "torch"]
