"""A client that has been trained already: it sends back what it was sent, moved by a random update."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    rng = np.random.default_rng()
    arrays = [
        a + rng.normal(0, 1e-3, a.shape).astype(np.float32)
        for a in message.content["arrays"].to_numpy_ndarrays()
    ]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
