"""Applications of many requests, told to the server that answers them; needs ``openai`` alone."""

from serving.client.application import Application
from serving.client.instance import Instance

__all__ = ["Application", "Instance"]
