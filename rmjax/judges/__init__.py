"""Judges: generators that evaluate answers. Prompts are files, replies are kept and read strictly, and what cannot be read is
counted, never scored.
"""
