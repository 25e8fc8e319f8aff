"""How many tokens a second does a policy draw, beside `transformers.generate`?"""
