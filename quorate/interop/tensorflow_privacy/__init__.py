"""tensorflow-privacy: its queries as our mechanism and in our ledger, and its attacks on a model.

Its queries run as the mechanism `dp-query` of our own engine (`queries`), or as the aggregator of a TFF process
(`quorate.interop.tff.processes.dp_query`).
"""
