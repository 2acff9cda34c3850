"""A ClientApp that moves state dicts."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pytorch_app import task

app = ClientApp()


def _net(message: Message):
    net = task.network()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def _data(context: Context):
    return task.load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(message: Message, context: Context) -> Message:
    net, (x, y) = _net(message), _data(context)
    loss = task.train(net, x, y, context.run_config["local-epochs"], message.content["config"]["lr"])
    content = RecordDict(
        {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": len(y)}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    net, (x, y) = _net(message), _data(context)
    loss, accuracy = task.test(net, x, y)
    metrics = MetricRecord({"eval_loss": loss, "accuracy": accuracy, "num-examples": len(y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
