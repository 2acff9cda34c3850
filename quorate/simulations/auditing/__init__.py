"""Audits of a plan in a simulation: canaries, membership inference, gradient inversion."""
