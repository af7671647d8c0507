"""How requests are ordered."""

from __future__ import annotations

from pydantic import Field, field_validator

from hecate.config import Config
from hecate.errors import ConfigError
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.policies import POLICIES
from serving.scheduling.applications.policies.config import OrderConfig

AUTO = "gittins" if "gittins" in POLICIES else "las"


class ApplicationsConfig(Config):
    """``policy``: whose turn it is. ``none``: requests go to engines as they come, and nothing is
    learnt of applications. ``auto`` is gittins with one replica of the ingress, and none with
    several, since each of them would see a part of each instance.

    ``tick_s``: how often ranks are refreshed, beside whenever a unit has ended. ``ahead``: how many
    answers more than it has places for an engine is sent, so that none stays empty.
    ``max_waiting``: requests that wait here, for each replica; more are refused as ``Overloaded``.

    ``history_file``: where what was learnt is written every ``save_s`` and at the end, and read
    from at the start; without one it is forgotten.
    """

    policy: str = "auto"
    order: OrderConfig = OrderConfig()
    history: HistoryConfig = HistoryConfig()
    tick_s: float = Field(default=0.1, gt=0)
    ahead: int = Field(default=2, ge=0)
    max_waiting: int = Field(default=256, ge=1)
    history_file: str = ""
    save_s: float = Field(default=30.0, gt=0)

    @field_validator("policy")
    @classmethod
    def _is_one(cls, policy: str) -> str:
        if policy not in (choices := ["auto", "none", *POLICIES]):
            raise ValueError(f"no such policy; one of {', '.join(choices)}")
        return policy

    def chosen(self, ingresses: int) -> str:
        """The name of a policy, or ``none``. Raises ``ConfigError`` for one that several ingresses
        cannot keep to."""
        if self.policy == "auto":
            return AUTO if ingresses == 1 else "none"
        if self.policy != "none" and ingresses > 1:
            raise ConfigError(
                f"applications.policy {self.policy} needs one replica of the ingress",
                got=f"ingress.replicas {ingresses}",
                fix="set ingress.replicas to 1, or applications.policy to none",
            )
        return self.policy
