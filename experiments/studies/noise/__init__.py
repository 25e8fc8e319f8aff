"""Who learns best from preferences of which a part is mislabeled?"""
