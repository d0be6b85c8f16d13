"""The ground every other room stands on. Imports no torch."""
