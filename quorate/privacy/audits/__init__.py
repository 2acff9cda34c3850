"""Empirical checks of what a mechanism claims: canaries, membership inference, gradient inversion.

They can show that a claim is wrong, never that it is right: an attack that fails may be the wrong attack.
"""
