"""Datasets that are made up, for tests and experiments: nothing is downloaded, and a seed says what they hold.

`fedprox` follows Li et al. 2020 ("Federated Optimization in Heterogeneous Networks", appendix C.1); `images` and
`sequences` are stand-ins of the right shape for image and next-token tasks; `population` has clients without number,
which are made when they are drawn.
"""

from __future__ import annotations

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError
from quorate.randomness import generator
from quorate.simulations.datasets.central import Dataset, split
from quorate.simulations.datasets.federated import ClientData, FederatedDataset, GeneratedClients

__all__ = ["fedprox", "images", "population", "sequences"]

_TEST_SHARE = 0.1


def fedprox(
    alpha: float = 1.0, beta: float = 1.0, clients: int = 30, iid: bool = False, seed: int = 0
) -> FederatedDataset:
    """synthetic(α, β): 60 features, 10 classes; models and inputs differ from client to client.

    A client's labels are argmax(W·x + b), with W and b around a mean u ~ N(0, α) of its own, and its inputs are
    N(v, Σ), Σ diagonal with j^-1.2, v around a mean B ~ N(0, β) of its own. Client sizes are 50 + lognormal(4, 2),
    cut at 10,000. A tenth of every client's examples (at least one) is the server's test set.

    Args:
        alpha: how much the clients' models differ; a variance.
        beta: how much their inputs differ; a variance.
        clients: how many there are.
        iid: one model and one distribution of inputs for all instead.
        seed: of everything.
    """
    if clients < 1 or alpha < 0 or beta < 0:
        raise DataError(
            f"alpha, beta, clients: {alpha}, {beta}, {clients} were found; alpha and beta of at least 0 and at least "
            "1 client are accepted"
        )
    rng = generator(seed, "fedprox")
    sizes = np.minimum(50 + rng.lognormal(4, 2, clients).astype(np.int64), 10_000)
    deviations = np.arange(1, 61) ** -0.6  # the square roots of j^-1.2
    shared = rng.normal(size=(60, 10)), rng.normal(size=10)
    xs, ys = [], []
    for size in sizes:
        u, center = rng.normal(0, np.sqrt(alpha)), rng.normal(0, np.sqrt(beta))
        weights, bias = shared if iid else (rng.normal(u, 1, (60, 10)), rng.normal(u, 1, 10))
        mean = np.zeros(60) if iid else rng.normal(center, 1, 60)
        x = mean + rng.normal(size=(size, 60)) * deviations
        xs.append(x)
        ys.append((x @ weights + bias).argmax(axis=1))
    name = f"synthetic({'iid' if iid else f'{alpha:g}, {beta:g}'}), {clients} clients, seed {seed}"
    return _held_out(name, xs, ys)


def images(examples: int = 5_000, classes: int = 10, side: int = 28, seed: int = 0) -> Dataset:
    """Small grey images: a smooth pattern for each class, moved by up to two pixels, with noise; values in [0, 1].

    Args:
        examples: how many, the server's test set included.
        classes: how many patterns.
        side: pixels a side; an image is a row of side² values.
        seed: of everything.
    """
    rng = generator(seed, "images", classes, side)
    waves = np.exp(-0.5 * (np.fft.fftfreq(side)[:, None] ** 2 + np.fft.fftfreq(side) ** 2) * side)
    patterns = np.fft.ifft2(np.fft.fft2(rng.normal(size=(classes, side, side))) * waves).real
    low, high = patterns.min(axis=(1, 2), keepdims=True), patterns.max(axis=(1, 2), keepdims=True)
    patterns = (patterns - low) / (high - low)
    y = rng.integers(classes, size=examples)
    moves = rng.integers(-2, 3, size=(examples, 2))
    x = np.stack([np.roll(patterns[label], move, (0, 1)) for label, move in zip(y, moves, strict=True)])
    x = np.clip(x + rng.normal(0, 0.25, x.shape), 0, 1).reshape(examples, -1)
    return split("images", x, y, seed)


def sequences(
    clients: int = 100,
    examples: int = 50,
    length: int = 16,
    vocabulary: int = 32,
    topics: int = 4,
    seed: int = 0,
) -> FederatedDataset:
    """Text-like data: windows of tokens, and the token that follows; each client writes about its own mix of topics.

    A topic is a Markov chain over the vocabulary, in which few tokens follow each one (Dirichlet, α 0.1). Tokens are
    whole numbers from 0 on, kept as float32 features. A tenth of every client's windows is the server's test set.

    Args:
        clients: how many there are.
        examples: windows of each client.
        length: tokens of a window.
        vocabulary: how many different tokens there are.
        topics: how many chains.
        seed: of everything.
    """
    rng = generator(seed, "sequences", vocabulary, topics)
    chains = rng.dirichlet(np.full(vocabulary, 0.1), size=(topics, vocabulary)).cumsum(axis=2)
    mixes = rng.dirichlet(np.full(topics, 0.5), size=clients)
    xs, ys = [], []
    for mix in mixes:
        topic = rng.choice(topics, size=examples, p=mix)
        tokens = np.empty((examples, length + 1), np.int64)
        tokens[:, 0] = rng.integers(vocabulary, size=examples)
        for place in range(length):
            reached = chains[topic, tokens[:, place]] < rng.random((examples, 1))
            tokens[:, place + 1] = np.minimum(reached.sum(axis=1), vocabulary - 1)
        xs.append(tokens[:, :-1])
        ys.append(tokens[:, -1])
    return _held_out(f"sequences, {clients} clients, {topics} topics, seed {seed}", xs, ys)


def population(
    clients: int = 1_000_000,
    examples: int = 20,
    features: int = 64,
    classes: int = 10,
    spread: float = 3.0,
    seed: int = 0,
) -> FederatedDataset:
    """Clients without number, each made when it is drawn: examples around the means of classes, and a mix of its own.

    Args:
        clients: how many there are; they cost nothing.
        examples: of every client.
        features: of an example.
        classes: how many means.
        spread: the length of each mean; the noise around it has variance 1 in every feature.
        seed: of everything; a client's examples depend on it and on the client's index only.
    """
    rng = generator(seed, "population", features, classes)
    means = rng.normal(size=(classes, features))
    means = (means * (spread / np.linalg.norm(means, axis=1, keepdims=True))).astype(np.float32)

    def draw(own: np.random.Generator, size: int, mix: np.ndarray | None) -> Examples:
        y = own.choice(classes, size=size, p=mix)
        return Examples(means[y] + own.standard_normal((size, features), np.float32), y)

    def make(index: int) -> Examples:
        own = np.random.default_rng((seed, index))
        return draw(own, examples, own.dirichlet(np.ones(classes)))

    return FederatedDataset(
        f"population of {clients}, {examples} examples each, seed {seed}",
        GeneratedClients(clients, make, examples),
        draw(rng, 2_000, None),
    )


def _held_out(name: str, xs: list[np.ndarray], ys: list[np.ndarray]) -> FederatedDataset:
    """A dataset of the given clients; the first tenth of each one's examples is for the test."""
    cuts = [max(1, round(_TEST_SHARE * len(y))) for y in ys]
    test = Examples(
        np.concatenate([x[:cut] for x, cut in zip(xs, cuts, strict=True)]),
        np.concatenate([y[:cut] for y, cut in zip(ys, cuts, strict=True)]),
    )
    train = Examples(
        np.concatenate([x[cut:] for x, cut in zip(xs, cuts, strict=True)]),
        np.concatenate([y[cut:] for y, cut in zip(ys, cuts, strict=True)]),
    )
    ends = np.cumsum([len(y) - cut for y, cut in zip(ys, cuts, strict=True)])
    parts = [np.arange(end - len(y) + cut, end) for end, y, cut in zip(ends, ys, cuts, strict=True)]
    return FederatedDataset(name, ClientData(train, parts), test)
