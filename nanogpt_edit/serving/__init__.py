"""What people touch: an HTTP API over models, the playground page that uses it, and models as files for others."""
