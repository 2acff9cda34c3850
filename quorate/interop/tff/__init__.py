"""TensorFlow Federated: its learning processes as an engine, its models as tasks, its client data as datasets.

TensorFlow Federated is published for Python 3.11 only, with packages that a modern environment does not have. So it
runs in an environment of its own (`environment`), in a child process (`process`, `child`) that is sent arrays and sends
arrays back. `learning`, `operations`, `processes`, `keras_models` and `aggregators` are imported there only, the rest
anywhere.
"""
