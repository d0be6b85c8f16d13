"""/v1: what speaks OpenAI's API."""
