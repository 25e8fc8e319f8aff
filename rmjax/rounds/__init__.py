"""Rounds: a policy answers prompts, its answers are rewarded, it learns from them, and again.

A round's answers are a file of records before the first update on them. A run that was stopped inside a round reads it again, so
parameters, answers and metrics are those of a run that was not.
"""
