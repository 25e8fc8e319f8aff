"""Tests compile without XLA's expensive passes (tests/conftest.py). Two programs that are to give the same bits need them."""

import jax

AS_USERS = {"xla_backend_optimization_level": "3", "xla_llvm_disable_expensive_passes": "False"}
"""Compiler options that undo it."""
if jax.__version_info__ < (0, 11):
    AS_USERS["xla_cpu_use_fusion_emitters"] = "True"
