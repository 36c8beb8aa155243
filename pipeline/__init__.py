"""The steps of the night, one module a step."""
