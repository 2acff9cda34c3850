"""FedAvg over whoever is there."""

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from numpy_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = FedAvg(fraction_train=1.0).start(
        grid=grid,
        initial_arrays=ArrayRecord(list(task.zeros().values())),
        train_config=ConfigRecord({"lr": 0.5}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    print(f"finished with {len(result.train_metrics_clientapp)} rounds")
