"""Processes with simulated devices."""

import os

THREADS = 64


def devices(count: int) -> dict[str, str]:
    """Their environment.

    XLA's threads, a core or a device each, may all come to wait in collectives of which the last participant has no thread; the
    process is then stopped after 40 s. It happens now and then on a single core, and not with threads to spare.
    """
    own = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": own}
    return flags | ({"NPROC": str(THREADS)} if count > 1 else {})
