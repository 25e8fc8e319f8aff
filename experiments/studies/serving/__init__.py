"""How many rewards a second does the server give, beside transformers behind a plain route, and does it lose any?"""
