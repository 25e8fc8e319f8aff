"""The policy objective in named parts: advantage, ratio, clip, correction, KL, entropy, aggregation.

R rows, T tokens a row, S sequences (sampled answers) a row, G groups, N samples of a prompt, V vocabulary, D width. All is fp32.
Every part is a pure function; `objective.policy_loss` puts them together, `presets.PRESETS` names the usual combinations.
"""
