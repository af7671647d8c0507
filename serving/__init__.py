"""Serving: an engine over Hugging Face models, and an OpenAI-compatible app on Ray Serve."""
