"""What people touch: a small HTTP API over one model, and the playground page that uses it."""
