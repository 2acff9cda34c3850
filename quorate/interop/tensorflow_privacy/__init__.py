"""tensorflow-privacy: what its queries release in our ledger, and its attacks on a model.

Its queries run as the aggregator of a TFF process (`quorate.interop.tff.processes.dp_query`).
"""
