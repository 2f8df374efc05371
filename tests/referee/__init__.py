"""Programs of the official SDK, run against perdure and against a real Temporal server."""
