"""HTTP in OpenAI's shapes over whatever answers.

| file | decides or executes | in -> out |
|---|---|---|
| schemas/ | decides | JSON -> a checked body |
| prompts.py | executes | text, messages, tools -> tokens; a token -> its text |
| requests.py | decides | a body -> what an engine is asked |
| backend.py | - | what the routes need of whatever answers |
| applications.py | executes | tags; what applications tell -> whoever orders them |
| dispatch.py | executes | one engine's steps -> a stream for each request |
| tools.py | decides | text -> text and tool calls |
| answers.py | decides | deltas -> pieces of choices; pieces -> whole choices |
| rendering.py | decides | pieces and choices -> OpenAI's JSON |
| answering.py | executes | one HTTP request's prompts -> its chunks, or its answer |
| connection.py | executes | chunks -> server-sent events; a client that leaves -> the end |
| tenants.py | decides | a key -> a tenant; what it uses -> its quota |
| guard.py | executes | keys and sizes before every route |
| metrics.py | executes | requests and loads -> Prometheus |
| http_errors.py | decides | an error -> status, body, headers |
| config.py | - | what the HTTP side is told |
| routes.py | executes | the app |
"""

from serving.api.applications import Applications
from serving.api.backend import Answerer, Backend
from serving.api.config import ApiConfig
from serving.api.dispatch import Dispatcher
from serving.api.prompts import Prompts
from serving.api.routes import Serving, build_api
from serving.api.tenants import Keys, Tenants, read_keys

__all__ = [
    "Answerer",
    "ApiConfig",
    "Applications",
    "Backend",
    "Dispatcher",
    "Keys",
    "Prompts",
    "Serving",
    "Tenants",
    "build_api",
    "read_keys",
]
