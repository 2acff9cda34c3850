"""The device's agent: takes part in rounds for months, on the device's own terms.

    policy, limits, conditions   what the device's owner accepts, and when
    state                        what must outlive the process: one SQLite file
    worker, training             the application's code, in a child process
    channel, stream              one participation over gRPC; the device always dials out
    agent                        the loop

The protocol's half and the keys stay in this process; nothing of the application is imported into it.
"""
