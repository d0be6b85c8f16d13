"""Teach a GPT to reason, edit the facts in its weights, and prove what each step gained and cost."""

__version__ = "0.1.0"
