"""The deployment that speaks HTTP, behind Ray Serve's proxies or by itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from serving.api import Prompts, Serving, Tenants, build_api
from serving.api.tenants import Keys
from serving.app.config import AppConfig
from serving.app.listener import Listener
from serving.app.logs import log_to_serve
from serving.app.replicas import Replicas
from serving.applications import OrderedApplications


class Ingress:
    """``engines``: Serve's handle of the engine deployment. ``folder``: of the tokenizer."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, engines: Any, config: AppConfig, keys: Keys, folder: str
    ) -> None:
        log_to_serve()
        self._config = config
        self._keys = keys
        self._prompts = Prompts.of_folder(Path(folder))
        self._backend = Replicas(engines, config.ingress)
        await self._backend.start()
        self._applications: OrderedApplications | None = None
        policy = config.applications.chosen(config.ingress.replicas)
        if policy != "none":
            self._applications = OrderedApplications(
                self._backend, policy, config.applications, time.monotonic
            )
            await self._applications.start()

    def api(self) -> Any:
        """The app, over all replicas."""
        return build_api(
            Serving(
                backend=self._backend,
                prompts=self._prompts,
                tenants=Tenants(self._keys, self._config.api.quota, time.monotonic),
                config=self._config.api,
                clock=time.monotonic,
                now=time.time,
                applications=self._applications,
            )
        )

    async def __del__(self) -> None:
        """Ray Serve's, once nothing of it is being answered any more."""
        if hasattr(self, "_applications") and self._applications is not None:
            await self._applications.close()


class ProxiedIngress(Ingress):
    """Reached through Ray Serve's proxies."""

    def __serve_build_asgi_app__(self) -> Any:  # noqa: N807  # Ray Serve's name
        return self.api()


class ListeningIngress(Ingress):
    """Listens at ``config.http`` itself, from when a replica answers until it is to go."""

    async def __init__(self, *given: Any) -> None:  # type: ignore[misc]
        await super().__init__(*given)
        http = self._config.http
        self._listener = Listener(self.api(), http.host, http.port)
        await self._listener.start()

    async def __del__(self) -> None:
        if hasattr(self, "_listener"):
            await self._listener.stop()
        await super().__del__()
