"""A server_fn: FedAvg, whose first parameters come from a client."""

from flwr.app import Context
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


def server_fn(context: Context) -> ServerAppComponents:
    config = ServerConfig(num_rounds=int(context.run_config["num-server-rounds"]))
    return ServerAppComponents(strategy=FedAvg(), config=config)


app = ServerApp(server_fn=server_fn)
