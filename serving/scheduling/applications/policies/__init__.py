"""Orders of work, by name.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | - | how far its ranks are followed |
| protocol.py | - | what a policy is asked |
| request_fcfs.py | decides | requests -> in order of arrival |
| application_fcfs.py | decides | instances -> in order of arrival |
| vtc.py | decides | what each class was served -> the least first |
| sjf.py | decides | means of classes -> the shortest first |
| las.py | decides | what each instance was served -> the least first |
| edf.py | decides | deadlines -> the earliest first |
| gittins.py | decides | what instances may still need -> the least index first |
| least_slack.py | decides | deadlines and paths ahead -> the index, weighed by slack |
| oracle.py | decides | the truth -> the least remaining first |
"""

from collections.abc import Callable

from serving.scheduling.applications.policies.application_fcfs import ApplicationFcfs
from serving.scheduling.applications.policies.edf import EarliestDeadline
from serving.scheduling.applications.policies.gittins import Gittins
from serving.scheduling.applications.policies.las import LeastAttained
from serving.scheduling.applications.policies.least_slack import LeastSlack
from serving.scheduling.applications.policies.oracle import Oracle
from serving.scheduling.applications.policies.protocol import Policy
from serving.scheduling.applications.policies.request_fcfs import RequestFcfs
from serving.scheduling.applications.policies.sjf import ShortestMean
from serving.scheduling.applications.policies.vtc import VirtualTokens
from serving.scheduling.applications.prospects import Prospects

POLICIES: dict[str, Callable[[Prospects], Policy]] = {
    "request_fcfs": lambda prospects: RequestFcfs(),
    "application_fcfs": lambda prospects: ApplicationFcfs(),
    "vtc": lambda prospects: VirtualTokens(),
    "sjf": ShortestMean,
    "gittins": Gittins,
    "least_slack": LeastSlack,
    "las": lambda prospects: LeastAttained(),
    "edf": lambda prospects: EarliestDeadline(),
}

__all__ = ["POLICIES", "Oracle", "Policy"]
