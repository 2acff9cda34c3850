"""The same job, as a Flower app."""
