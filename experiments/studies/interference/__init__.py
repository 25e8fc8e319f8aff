"""Do two kinds of preference get in each other's way in one reward model?"""
