"""Rewards of a policy's answers: verifiers, rules, reward models, servers, and sums of them.

A reward takes records and gives a number, or the reason why there is none, for every output. It fails closed: no default stands
for a reward that could not be had; `reward.rewarded` drops such answers and counts them.
"""
