"""Partitions: which client holds which examples. Functions from labels to one array of indices a client.

Every example belongs to exactly one client, and every client has at least one. All randomness comes from the
generator that is passed in, so a partition is the same for the same seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from quorate.errors import DataError, PlanError

__all__ = ["PARTITIONS", "by_name", "dirichlet", "iid", "quantity", "shards"]

Partition = list[np.ndarray]
"""One sorted int64 array of indices a client."""


def iid(labels: np.ndarray, clients: int, rng: np.random.Generator) -> Partition:
    """Examples are dealt out at random; sizes differ by one at most.

    Args:
        labels: shape (examples,); only their number matters.
        clients: how many there are.
        rng: where randomness comes from.

    Raises:
        DataError: there are fewer examples than clients.
    """
    _check(labels, clients)
    return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), clients)]


def dirichlet(labels: np.ndarray, clients: int, rng: np.random.Generator, alpha: float = 1.0) -> Partition:
    """Each client draws its own mix of labels, q ~ Dirichlet(α·p), and then its examples without replacement.

    p is the mix of the whole data. A small α gives a client few labels, a large one gives all clients the
    same mix: q varies as much as in the paper, where p is a probability vector, so α·p sums to α and not to α
    times the number of labels. A label that has run out is drawn no more. Sizes differ by one at most, so
    that every client has an example (Hsu, Qi, Brown: "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification", 2019, section 3).

    Args:
        labels: shape (examples,), whole numbers.
        clients: how many there are.
        rng: where randomness comes from.
        alpha: the concentration α, positive.

    Raises:
        DataError: there are fewer examples than clients, the labels are not whole, or α is not positive.
    """
    _check(labels, clients, whole=True)
    _check_alpha(alpha)
    _, codes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    pools = [rng.permutation(np.flatnonzero(codes == code)) for code in range(len(totals))]
    left, mix = totals.copy(), totals / totals.sum()
    parts: Partition = [np.empty(0, np.int64)] * clients
    sizes = [len(part) for part in np.array_split(np.empty(len(labels)), clients)]
    for client in rng.permutation(clients):  # who comes last gets what is left: let it be anybody
        taken = _draw(rng.dirichlet(alpha * mix), sizes[client], left, rng)
        ends = totals - left
        parts[client] = np.sort(
            np.concatenate([pool[e : e + t] for pool, e, t in zip(pools, ends, taken, strict=True)])
        )
        left -= taken
    return parts


def quantity(labels: np.ndarray, clients: int, rng: np.random.Generator, alpha: float = 1.0) -> Partition:
    """Clients hold very different numbers of examples, each a random sample: sizes ~ Dirichlet(α, …, α).

    A small α gives few clients nearly everything (Li, Diao, Chen, He 2022, "Federated Learning on Non-IID Data Silos",
    section 4.3). Every client has at least one example.

    Args:
        labels: shape (examples,); only their number matters.
        clients: how many there are.
        rng: where randomness comes from.
        alpha: the concentration α of each client, positive.

    Raises:
        DataError: there are fewer examples than clients, or α is not positive.
    """
    _check(labels, clients)
    _check_alpha(alpha)
    shares = rng.dirichlet(np.full(clients, alpha))
    sizes = 1 + rng.multinomial(len(labels) - clients, shares / shares.sum())
    return [np.sort(part) for part in np.split(rng.permutation(len(labels)), np.cumsum(sizes)[:-1])]


def shards(labels: np.ndarray, clients: int, rng: np.random.Generator, per_client: int = 2) -> Partition:
    """Examples sorted by label are cut into equal shards, and each client gets a few of them at random.

    The "pathological non-IID" partition: most clients have as many labels as shards (McMahan et al. 2017,
    section 3).

    Args:
        labels: shape (examples,), whole numbers.
        clients: how many there are.
        rng: where randomness comes from.
        per_client: shards of each client.

    Raises:
        DataError: there are fewer examples than shards, the labels are not whole, or `per_client` is below 1.
    """
    _check(labels, clients, whole=True)
    if per_client < 1 or clients * per_client > len(labels):
        raise DataError(
            f"per_client: {per_client} was found; with {len(labels)} examples and {clients} clients "
            f"1 to {len(labels) // clients} is accepted"
        )
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    cut = np.array_split(by_label, clients * per_client)
    dealt = rng.permutation(len(cut)).reshape(clients, per_client)
    return [np.sort(np.concatenate([cut[shard] for shard in mine])) for mine in dealt]


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "dirichlet": dirichlet,
    "iid": iid,
    "quantity": quantity,
    "shards": shards,
}


def by_name(
    kind: str, labels: np.ndarray, clients: int, rng: np.random.Generator, **options: Any
) -> Partition:
    """The partition of a kind.

    Args:
        kind: one of `PARTITIONS`.
        labels: shape (examples,).
        clients: how many there are.
        rng: where randomness comes from.
        options: the kind's own, such as `alpha`.

    Raises:
        PlanError: there is no such kind, or it has no such option.
        DataError: the data can't be partitioned so.
    """
    if kind not in PARTITIONS:
        raise PlanError(f"there is no partition {kind!r}; these exist: {', '.join(PARTITIONS)}")
    partition = PARTITIONS[kind]
    known = list(inspect.signature(partition).parameters)[3:]
    unknown = [option for option in options if option not in known]
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise PlanError(f"the partition {kind!r} has no option {', '.join(unknown)}; {takes}")
    return partition(labels, clients, rng, **options)


def _check(labels: np.ndarray, clients: int, *, whole: bool = False) -> None:
    if clients < 1:
        raise DataError(f"clients: {clients} was found; a whole number of at least 1 is accepted")
    if len(labels) < clients:
        raise DataError(
            f"{len(labels)} examples can't be given to {clients} clients: each needs at least one"
        )
    if whole and labels.dtype.kind not in "iub":
        raise DataError(f"a partition by label needs whole labels, got {labels.dtype}; 'iid' takes any")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < np.inf:
        raise DataError(f"alpha: {alpha!r} was found; a number above 0 is accepted")


def _draw(mix: np.ndarray, size: int, left: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many of each label a client takes: `size` in all, and of none more than is left."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        open_mix = np.where(taken < left, mix, 0.0)
        if not open_mix.sum() > 0:  # its own labels have all run out
            open_mix = (left - taken).astype(np.float64)
        taken = np.minimum(taken + rng.multinomial(missing, open_mix / open_mix.sum()), left)
    return taken
