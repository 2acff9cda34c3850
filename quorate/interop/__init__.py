"""Other systems, in both directions: Flower, TensorFlow Federated, TensorFlow Privacy."""
