"""Processes with simulated devices."""

THREADS = 64


def devices(count: int) -> dict[str, str]:
    """Their environment.

    XLA's threads, a core or a device each, may all come to wait in collectives of which the last participant has no thread; the
    process is then stopped after 40 s. It happens now and then on a single core, and not with threads to spare.
    """
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    return flags | ({"NPROC": str(THREADS)} if count > 1 else {})
