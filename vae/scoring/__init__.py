"""Scoring: features, distances, and the card that goes with every number."""
