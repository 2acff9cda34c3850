"""These run in `.venv-interop` (`make test-interop`): elsewhere there is nothing to collect."""

import importlib.util
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

if importlib.util.find_spec("tensorflow_federated") is None:
    collect_ignore_glob = ["test_*.py"]
