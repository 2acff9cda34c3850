"""A ClientApp with functions and a mod; it counts its rounds in its context."""

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from numpy_app import task


def counting_mod(message: Message, context: Context, call_next):
    """Passes the message on, and marks the reply."""
    reply = call_next(message, context)
    next(iter(reply.content.metric_records.values()))["mods"] = 1
    return reply


app = ClientApp(mods=[counting_mod])


def _model(message: Message):
    names = ("weight", "bias")
    return dict(zip(names, message.content["arrays"].to_numpy_ndarrays(), strict=True))


def _data(context: Context):
    return task.load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(message: Message, context: Context) -> Message:
    x, y = _data(context)
    rounds = int(context.state["mine"]["rounds"]) + 1 if "mine" in context.state else 1
    context.state["mine"] = ConfigRecord({"rounds": rounds})
    epochs, lr = context.run_config["local-epochs"], message.content["config"]["lr"]
    model = task.train(_model(message), x, y, epochs, lr)
    loss, _ = task.test(model, x, y)
    metrics = {
        "train_loss": loss, "rounds": rounds, "epochs": epochs, "server-round":
        message.content["config"]["server-round"], "num-examples": len(y),
    }  # fmt: skip
    return Message(
        RecordDict({"arrays": ArrayRecord(list(model.values())), "metrics": MetricRecord(metrics)}),
        reply_to=message,
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    x, y = _data(context)
    loss, accuracy = task.test(_model(message), x, y)
    metrics = MetricRecord({"eval_loss": loss, "accuracy": accuracy, "num-examples": len(y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
