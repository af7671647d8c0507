"""What a call of Ray Serve's raises where nobody is left to answer it."""

from __future__ import annotations

from grpc import RpcError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

# Of Ray's actors, of Serve's router, which no replica may be known to, and of what carries calls.
CALL_LOST: tuple[type[Exception], ...] = (RayError, RayServeException, RpcError)
# The same, or in time.
CALL_LATE: tuple[type[Exception], ...] = (*CALL_LOST, TimeoutError)
