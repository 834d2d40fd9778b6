"""Nearly all the time that the tests take goes into compiling. They are compiled as quickly as can be, but where the
last digits of float32 are judged: there it is `AS_FOR_USERS`."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

_EMITTERS = "xla_cpu_use_fusion_emitters"
_CHOICE_OF_EMITTERS = version("jaxlib") < "0.11"

QUICK = {"xla_backend_optimization_level": 0} | ({_EMITTERS: False} if _CHOICE_OF_EMITTERS else {})
AS_FOR_USERS = {"xla_backend_optimization_level": 3} | ({_EMITTERS: True} if _CHOICE_OF_EMITTERS else {})


# Several threads a program only get into each other's way where there is a process of tests for every core.
_ALONE = {"xla_cpu_parallel_codegen_split_count": 1}


def environment() -> dict[str, str]:
    """For this process and those that it starts, before JAX is imported."""
    flags = (f"--{name}={str(value).lower()}" for name, value in (QUICK | _ALONE).items())
    variables = {"XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags])}
    # What one process has compiled is there for all of them, and for the next run where a directory is given.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = tempfile.mkdtemp(prefix="jaxctc-tests-")
        atexit.register(shutil.rmtree, cache)
        variables["JAX_COMPILATION_CACHE_DIR"] = cache
    return variables | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
